"""Walking along an axis in chunks: what memory-efficient attention has in common."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.errors import Refused
from perceiver_jax.sharding import in_mesh_of

# Logits that exist at a time. On CPUs a tile that stays in the cache; elsewhere one that fills the
# device and is small beside its memory (256 MiB; not measured).
TILE_ELEMENTS = {'cpu': 2**20, 'other': 2**26}
MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)  # finite: fully masked rows stay free of NaN

NO_FORWARD_MODE = (
    'Forward-mode differentiation (jax.jvp, jax.jacfwd, jax.linearize) of attention needs '
    "implementation='plain'. The others serve reverse mode (jax.grad, jax.vjp, jax.jacrev) and "
    'forward over reverse (jax.hessian).'
)

_Carry = TypeVar('_Carry')


def tile_elements() -> int:
    """Returns how many logits should exist at a time on the platform that is compiled for."""
    return TILE_ELEMENTS['cpu' if jax.default_backend() == 'cpu' else 'other']


@contextlib.contextmanager
def only_reverse_mode() -> Iterator[None]:
    """Says what forward mode needs, where a custom gradient has none.

    Yields:
      None.

    Raises:
      Refused: jax differentiates forwards, and nothing around is compiled.
    """
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        if 'forward-mode' in str(error) or 'custom_lin' in str(error):
            raise Refused(NO_FORWARD_MODE) from None
        raise


def for_each_chunk(
    length: int, size: int, body: Callable[[Any, int, _Carry], _Carry], carry: _Carry
) -> _Carry:
    """Walks along an axis in a compiled loop.

    Args:
      length: Length of the axis.
      size: Length of a chunk; the last one holds the remainder.
      body: Takes the start of a chunk, its length, and the carry; returns the new carry.
      carry: What the first chunk is given, a tree of arrays.

    Returns:
      What the last chunk returned.
    """
    if length == size:
        return body(0, size, carry)
    whole = length // size
    with in_mesh_of(jax.tree.leaves(carry)[0]):
        carry = jax.lax.fori_loop(0, whole, lambda i, carry: body(i * size, size, carry), carry)
    if length % size:
        carry = body(whole * size, length % size, carry)
    return carry


def take(x: Any, start: Any, size: int, axis: int) -> Any:
    """Cuts a chunk out of an array.

    Args:
      x: The array, whose axis may also have length 1, for what all chunks share; None: nothing.
      start: Where the chunk starts.
      size: Its length.
      axis: The axis that is cut.
    """
    if x is None or x.shape[axis] in (1, size):  # broadcast, or whole
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def put(whole: Any, part: Any, start: Any, axis: int = 2) -> Any:
    """Writes a chunk into an array, in its dtype.

    Args:
      whole: The array; None: nothing.
      part: The chunk.
      start: Where it starts.
      axis: The axis along which it is a part.
    """
    if whole is None:
        return None
    part = part.astype(whole.dtype)
    if part.shape == whole.shape:
        return part
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


def wide_einsum(axes: str, x: Array, y: Array) -> Array:
    """Multiplies two arrays of any precision and adds up in float32 at least.

    Args:
      axes: As of `jnp.einsum`.
      x: Any array.
      y: Any array.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(axes, x, y, preferred_element_type=wide)
