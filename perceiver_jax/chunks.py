"""Walking along an axis in chunks: what memory-efficient attention has in common."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.errors import Refused
from perceiver_jax.sharding import in_mesh_of

# Logits, float32, that exist at a time. On CPUs a tile that stays in the cache; elsewhere one that
# fills the device and is small beside its memory. What costs there is the loop: on an H100 the
# gradient of attention to eight images (0.8 GB of logits) took 6.2 ms in one chunk, 8.2 ms in
# tiles of half of this, and 9.3 ms in tiles of an eighth.
TILE_BYTES = {'cpu': 2**22, 'gpu': 2**29, 'tpu': 2**28}
MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)  # finite: fully masked rows stay free of NaN

NO_FORWARD_MODE = (
    'Forward-mode differentiation (jax.jvp, jax.jacfwd, jax.linearize) of attention needs '
    "implementation='plain'. The others serve reverse mode (jax.grad, jax.vjp, jax.jacrev) and "
    'forward over reverse (jax.hessian).'
)

_Carry = TypeVar('_Carry')


_platform = jax.make_user_context()
_device_kind = jax.make_user_context()


@contextlib.contextmanager
def compiling_for(platform: str, device_kind: str | None = None) -> Iterator[None]:
    """Lets what is traced inside have the tiles and kernels of a platform that need not be there.

    Functions that are compiled with `jax.jit` are traced again where the platform is another one.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      device_kind: What jax calls the device, such as 'TPU v4'; None: not known.

    Yields:
      None.

    Raises:
      Refused: There is no such platform.
    """
    if platform not in TILE_BYTES:
        raise Refused(f'platform must be one of {(*TILE_BYTES,)}, not {platform!r}.')
    with _platform(platform), _device_kind(device_kind):
        yield


def platform() -> str:
    """Returns the platform that is compiled for: 'cpu', 'gpu' or 'tpu'."""
    return _platform.value or jax.default_backend()


def device_kind() -> str | None:
    """Returns what jax calls the devices that are compiled for; None: it is not known."""
    return _device_kind.value if _platform.value else jax.devices()[0].device_kind


def tile_elements() -> int:
    """Returns how many logits should exist at a time on the platform that is compiled for."""
    return TILE_BYTES.get(platform(), TILE_BYTES['tpu']) // 4


def chunk_length(length: int, most: int) -> int:
    """Chooses the length of chunks: one that divides the axis, so that no chunk overlaps another.

    Args:
      length: Length of the axis.
      most: The longest that a chunk may be.

    Returns:
      The longest divisor, if more than half of the most is one; else the most.
    """
    most = min(most, length)
    return next((n for n in range(most, most // 2, -1) if length % n == 0), most)


class Chunk(NamedTuple):
    """A part of an axis.

    Attributes:
      start: Its first index.
      size: Its length.
      new: Boolean `[size]`, false for what the chunk before had too; None: all is new.
    """

    start: Any
    size: int
    new: Array | None


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
    length: int, size: int, body: Callable[[Chunk, _Carry], _Carry], carry: _Carry
) -> _Carry:
    """Walks along an axis in a compiled loop.

    Where chunks do not divide the axis, the last one ends where it ends and overlaps the one
    before: one body is compiled, not another one for a remainder.

    Args:
      length: Length of the axis.
      size: Length of a chunk, at most that of the axis.
      body: Takes a chunk and the carry; returns the new carry.
      carry: What the first chunk is given, a tree of arrays.

    Returns:
      What the last chunk returned.
    """
    if length == size:
        return body(Chunk(0, size, None), carry)

    def see(i, carry):
        if length % size == 0:
            return body(Chunk(i * size, size, None), carry)
        start = jnp.minimum(i * size, length - size)
        return body(Chunk(start, size, start + jnp.arange(size) >= i * size), carry)

    with in_mesh_of(jax.tree.leaves(carry)[0]):
        return jax.lax.fori_loop(0, -(-length // size), see, carry)


def take(x: Any, chunk: Chunk, axis: int) -> Any:
    """Cuts a chunk out of an array.

    Args:
      x: The array, whose axis may also have length 1, for what all chunks share; None: nothing.
      chunk: The chunk.
      axis: The axis that is cut.
    """
    if x is None or x.shape[axis] in (1, chunk.size):  # broadcast, or whole
        return x
    return jax.lax.dynamic_slice_in_dim(x, chunk.start, chunk.size, axis)


def put(whole: Any, part: Any, chunk: Chunk, axis: int = 2) -> Any:
    """Writes what is new of a chunk into an array, in its dtype.

    Args:
      whole: The array; None: nothing.
      part: The values of the chunk.
      chunk: The chunk.
      axis: The axis along which it is a part.
    """
    if whole is None:
        return None
    part = part.astype(whole.dtype)
    if part.shape == whole.shape:
        return part
    if chunk.new is not None:
        part = jnp.where(along(chunk.new, axis, part.ndim), part, take(whole, chunk, axis))
    return jax.lax.dynamic_update_slice_in_dim(whole, part, chunk.start, axis)


def along(x: Array, axis: int, ndim: int) -> Array:
    """Gives an array of one axis others of length 1.

    Args:
      x: `[size]`.
      axis: Which axis it becomes.
      ndim: Number of axes of the result.
    """
    return jax.lax.broadcast_in_dim(
        x, [x.shape[0] if i == axis else 1 for i in range(ndim)], (axis,)
    )


def wide_einsum(axes: str, x: Array, y: Array) -> Array:
    """Multiplies two arrays of any precision and adds up in float32 at least.

    Args:
      axes: As of `jnp.einsum`.
      x: Any array.
      y: Any array.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(axes, x, y, preferred_element_type=wide)
