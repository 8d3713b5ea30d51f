"""What a model makes by itself lies where the examples of its data lie.

Under a mesh with explicit axes (`jax.make_mesh`'s default) and under `jax.shard_map`, an array's
type says how it is laid out: its sharding, and the axes of the mesh along which its values vary.
Loops, concatenations and custom gradients want types that agree, so zeros, repeated parameters and
masks take theirs from the data. Elsewhere nothing here does anything: under automatic axes the
compiler chooses.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharding_like(data: Array, ndim: int, leading: int = 1) -> NamedSharding | None:
    """Returns the sharding of an array whose first axes are laid out like those of the data.

    Args:
      data: The array whose layout is taken.
      ndim: Number of axes of the other array.
      leading: How many axes are laid out alike; the others are not divided.

    Returns:
      What jax calls `out_sharding`; None: nothing is divided along explicit axes of a mesh.
    """
    sharding = jax.typeof(data).sharding
    divided = tuple(sharding.spec)[:leading]
    if all(axis is None for axis in divided):
        return None
    return sharding.update(spec=PartitionSpec(*divided, *[None] * (ndim - leading)))


def varying_like(x: Array, data: Array) -> Array:
    """Lets an array vary along the axes of `jax.shard_map` that the data varies along.

    Args:
      x: Any array; its values stay.
      data: The array whose axes are taken.

    Returns:
      `x`. Its gradient is the sum over the devices that it was not varying along.
    """
    missing = varying_axes(data) - varying_axes(x)
    return jax.lax.pcast(x, tuple(sorted(missing)), to='varying') if missing else x


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the axes of `jax.shard_map` that an array is known to vary along.

    Args:
      x: Any array.
    """
    return jax.typeof(x).manual_axis_type.varying


def in_mesh_of(data: Array) -> contextlib.AbstractContextManager[Any]:
    """Lets something be traced in the mesh that the data is divided over, if its axes are explicit.

    Where no mesh is set (`jax.set_mesh`), jax 0.12 forgets how zeros and what is in loops are laid
    out.

    Args:
      data: An array that is worked on.
    """
    mesh = jax.typeof(data).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types or not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def zeros_like_rows(shape: Sequence[int], dtype: Any, data: Array) -> Array:
    """Makes zeros that are laid out like the data along all axes but the last.

    Args:
      shape: Shape of the zeros, with as many axes as the data has.
      dtype: Dtype of the zeros.
      data: `[..., C]`.
    """
    sharding = sharding_like(data, len(shape), leading=len(shape) - 1)
    with in_mesh_of(data):
        return varying_like(jnp.zeros(shape, dtype, out_sharding=sharding), data)


def for_each_example(x: Array, data: Array) -> Array:
    """Repeats an array for each example, where the example is.

    Args:
      x: `[...]`, such as a parameter.
      data: `[B, ...]`, the examples.

    Returns:
      `[B, ...]`, the same along B.
    """
    # As a product with ones, whose gradient is a product too. For the sum over examples that is the
    # gradient of a broadcast, XLA on GPUs stores the latents of all layers with the examples
    # innermost: a fifth more bytes are moved, and products read their operands across.
    ones = varying_like(jnp.ones(data.shape[0], x.dtype), data)
    return jax.lax.dot_general(
        ones,
        varying_like(x, data),
        dimension_numbers=(((), ()), ((), ())),
        out_sharding=sharding_like(data, x.ndim + 1),
    )


def with_examples(x: Array, data: Array) -> Array:
    """Lays out an array with a value for each example like the examples.

    Args:
      x: `[B, ...]`, or `[1, ...]` for what all examples share.
      data: `[B, ...]`, the examples.

    Returns:
      `x`, with the values that it has.
    """
    sharding = sharding_like(data, x.ndim)
    if x.shape[0] == data.shape[0] and sharding not in (None, jax.typeof(x).sharding):
        x = jax.sharding.reshard(x, sharding)
    return varying_like(x, data)


def reshape_examples(x: Array, *shape: int) -> Array:
    """Reshapes all axes but the first, which may be divided.

    Args:
      x: `[B, ...]`, also without any example.
      *shape: The axes behind B; one of them may be -1, what is left for it.

    Returns:
      `[B, *shape]`.
    """
    known = math.prod(size for size in shape if size != -1)
    left = math.prod(x.shape[1:]) // max(known, 1)
    sizes = [left if size == -1 else size for size in shape]
    return jnp.reshape(x, (x.shape[0], *sizes), out_sharding=sharding_like(x, 1 + len(sizes)))


def laid_out_alike(*arrays: Array | None) -> list[Any]:
    """Lays out arrays whose first axis is that of the examples like each other.

    Args:
      *arrays: `[B, ...]`, or `[1, ...]` for what all examples share; None: nothing.

    Returns:
      The arrays, in order. Where they are divided in different ways, the last one decides.
    """
    given = [x for x in arrays if x is not None]
    return [None if x is None else functools.reduce(with_examples, given, x) for x in arrays]
