"""Attention weights on request: otherwise they are not kept, and often never computed."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax import Array

from perceiver_jax.dot_product_attention import attention_weights


class _Recording(NamedTuple):
    module_suffix: str  # end of the Haiku name of the module that attends
    collected: list[Array]  # receives its weights


# The recordings of this thread that are under way.
_recordings: contextvars.ContextVar[tuple[_Recording, ...]]
_recordings = contextvars.ContextVar('recordings', default=())


@contextlib.contextmanager
def record_attention(module_name: str) -> Iterator[list[Array]]:
    """Collects the attention weights of one module, which are not kept otherwise.

    Use it inside the transformed function and return what it collected:

        def forward(images):
            with record_attention('encoder/cross_attend_1') as weights:
                logits = image_classifier(images, is_training=False, **model)
            return logits, weights[0]

    Args:
      module_name: The module that attends, by the end of its Haiku name.

    Yields:
      A list that receives `[B, H, T, S]` float32 each time the module is called.
    """
    collected: list[Array] = []
    recording = _Recording(f'{module_name}/attention', collected)
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
    """Returns whether the weights of modules that are called now may be asked for."""
    return bool(_recordings.get())


def is_recorded(module_name: str) -> bool:
    """Returns whether a module's weights are asked for.

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


def record(module_name: str, query: Array, key: Array, mask: Array | None, **how: Any) -> None:
    """Computes a module's attention weights, if they are asked for.

    Args:
      module_name: Full Haiku name of the module that attends.
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Broadcastable to `[B, T, S]`; None: no mask.
      **how: Further arguments of `attention_weights`.
    """
    for recording in _recordings_of(module_name):
        recording.collected.append(attention_weights(query, key, mask, **how))
