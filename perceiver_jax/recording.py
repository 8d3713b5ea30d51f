"""Attention weights on request, which are not kept otherwise."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from jax import Array

from perceiver_jax.dot_product_attention import attention_weights

# What is recorded in this thread: ends of module names, and where their weights go.
_recordings: contextvars.ContextVar[tuple[tuple[str, list[Array]], ...]]
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
    token = _recordings.set((*_recordings.get(), (f'{module_name}/attention', collected)))
    try:
        yield collected
    finally:
        _recordings.reset(token)


@contextlib.contextmanager
def no_recording() -> Iterator[None]:
    """Records nothing: within a loop, the weights of one iteration cannot leave it."""
    token = _recordings.set(())
    try:
        yield
    finally:
        _recordings.reset(token)


def is_recording() -> bool:
    """Whether weights may have to leave the modules that are called now."""
    return bool(_recordings.get())


def _record(
    module_name: str, query: Array, key: Array, mask: Array | None, how: dict[str, Any]
) -> None:
    for suffix, collected in _recordings.get():
        if f'/{module_name}'.endswith(f'/{suffix}'):
            collected.append(attention_weights(query, key, mask, **how))
