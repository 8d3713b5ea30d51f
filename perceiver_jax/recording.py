"""Attention weights, or logits, on request: they are not kept otherwise, often never computed."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from jax import Array

from perceiver_jax.dot_product_attention import attention_logits, attention_weights


class _Recording(NamedTuple):
    module_suffix: str  # end of the Haiku name of the module that attends
    logits: bool  # whether they are asked for, and not the weights
    collected: list[Array]  # receives either


# The recordings of this thread that are under way.
_recordings: contextvars.ContextVar[tuple[_Recording, ...]]
_recordings = contextvars.ContextVar('recordings', default=())


@contextlib.contextmanager
def record_attention(module_name: str, *, logits: bool = False) -> Iterator[list[Array]]:
    """Collects the attention weights of one module, or its logits, which are not kept otherwise.

    Use it inside the transformed function and return what it collected:

        def forward(images):
            with record_attention('encoder/cross_attend_1') as weights:
                scores = image_classifier(images, is_training=False, **model)
            return scores, weights[0]

    Both are those of the definition, whatever the implementation: queries and keys are projected,
    biases included, though the output may be computed without (`perceiver_jax.folding`).

    Args:
      module_name: The module that attends, by the end of its Haiku name.
      logits: Whether to collect what is before the softmax: products of queries and keys, times
        1 / sqrt(F). Where a mask hides a key they are the lowest finite float32, -3.4e38. The
        weights are their softmax over S; those of a query that may attend to no key are zeros.

    Yields:
      A list that receives `[B, H, T, S]` float32 each time the module is called.

    Source: Perceiver, figure 3 and appendix E show logits.
    """
    collected: list[Array] = []
    recording = _Recording(f'{module_name}/attention', logits, collected)
    token = _recordings.set((*_recordings.get(), recording))
    try:
        yield collected
    finally:
        _recordings.reset(token)


@contextlib.contextmanager
def no_recording() -> Iterator[None]:
    """Records nothing: the weights of one iteration of a loop cannot leave the loop.

    Yields:
      None.
    """
    token = _recordings.set(())
    try:
        yield
    finally:
        _recordings.reset(token)


def is_recording() -> bool:
    """Returns whether weights or logits of modules that are called now may be asked for."""
    return bool(_recordings.get())


def is_recorded(module_name: str) -> bool:
    """Returns whether a module's weights or logits are asked for.

    Args:
      module_name: Full Haiku name of the module that attends.
    """
    return bool(_recordings_of(module_name))


def _recordings_of(module_name: str) -> list[_Recording]:
    return [
        recording
        for recording in _recordings.get()
        if f'/{module_name}'.endswith(f'/{recording.module_suffix}')
    ]


def record(module_name: str, query: Array, key: Array, mask: Array | None) -> None:
    """Computes a module's attention weights or logits, if they are asked for.

    Args:
      module_name: Full Haiku name of the module that attends.
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Broadcastable to `[B, T, S]`; None: no mask.
    """
    for recording in _recordings_of(module_name):
        compute = attention_logits if recording.logits else attention_weights
        recording.collected.append(compute(query, key, mask))
