"""Attention by the kernel for TPUs that comes with jax, splash attention (Pallas, Mosaic).

The kernel walks over blocks of queries and keys like `perceiver_jax.chunked_attention`, and its
logits never leave the chip. It knows neither scales nor biases nor lengths that its blocks do not
divide: queries are multiplied by the scale, a bias is a product of channels of its own, and what is
padded is masked. Its gradient computes the logits twice, for the queries and for keys and values.

`attend` in `perceiver_jax.dot_product_attention` is the public function.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import AxisType, PartitionSpec

from perceiver_jax.chunked_attention import (
    Operands,
    Prepare,
    heads_first,
    prepared,
    without_unused_keys,
)
from perceiver_jax.chunks import device_kind, platform
from perceiver_jax.sharding import varying_axes

LANES = 128  # blocks are multiples of it
# Most bytes of a row of queries, keys or values -> most rows of a block: with their gradients they
# fit the 16 MiB that a program has on v4.
BLOCKS = {1024: 512, 2048: 256, 4096: 128}
FLOAT32_ALONE = ('TPU v2', 'TPU v3')  # for these the kernel does not compile in bfloat16
BIAS_CHANNELS = 3
_KEPT = 'splash_attention'


def why_not(
    query: Array, key: Array, value: Array | None, key_bias: Array | None, mask: Array | None
) -> str | None:
    """Says what the kernel would need and does not get.

    It trusts in a TPU whose kind is not known; a compiler refuses what that cannot do.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; None: the keys are the values.
      key_bias: `[B, S, H]`; None: nothing.
      mask: `[B, T, S]`, or 1 in place of any of them; None: no mask.

    Returns:
      What is missing, to stand behind "'splash' takes"; None: the kernel runs.
    """
    value = key if value is None else value
    dtypes = {query.dtype, key.dtype, value.dtype}
    channels = max(query.shape[-1] + (0 if key_bias is None else BIAS_CHANNELS), value.shape[-1])
    if platform() != 'tpu':
        return f'a TPU, not a {platform().upper()}'
    if device_kind() in FLOAT32_ALONE and dtypes != {jnp.dtype('float32')}:
        return f'float32 on a {device_kind()}, not {query.dtype}'
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype('bfloat16'), jnp.dtype('float32')}:
        given = ', '.join(str(x.dtype) for x in (query, key, value))
        return f'queries, keys and values all of bfloat16 or all of float32, not {given}'
    if (most := max(BLOCKS) // query.dtype.itemsize) < channels:
        return f'up to {most:,} channels a head in {query.dtype}, not {channels:,}'
    if mask is not None and mask.shape[1] > 1 and mask.shape[2] > 1:
        return f'a mask of keys or one of queries, not one of both, {mask.shape}'
    if not all(isinstance(n, int) for n in (*query.shape, *key.shape)):
        return f'sizes that are numbers, not {query.shape} and {key.shape}'
    if varying_axes(query):
        return 'no arrays that vary along axes of jax.shard_map but with check_vma=False'
    return None


def attend_by_splash(
    query: Array,
    key: Array,
    value: Array | None,
    key_bias: Array | None,
    mask: Array | None,
    *,
    scale: float,
    prepare_query: Prepare | None = None,
    prepare_key: Prepare | None = None,
    interpret: bool = False,
) -> Array:
    """Averages the values by their attention weights, in the kernel.

    For the gradient it keeps what it is given and what it returns, and a number for each row.

    No compiler divides a kernel over devices. Along explicit axes of a mesh, and along all axes of
    an automatic one that is set (`jax.set_mesh`), each device has a part of the examples. Where no
    mesh is set it is for one device, or for `jax.pmap` and `jax.shard_map`.

    Args:
      query: `[B, T, H, F]`; what `why_not` has nothing against.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; None: the prepared keys are the values.
      key_bias: `[B, S, H]`, added to the logits of a key; None: nothing.
      mask: Boolean or 0/1, `[B, 1, S]` or `[B, T, 1]`, or 1 in place of B; None: no mask.
      scale: Factor of the dot products.
      prepare_query: Applied to the queries first; None: nothing.
      prepare_key: Applied to the keys first; None: nothing.
      interpret: Whether to run without a TPU, slowly.

    Returns:
      `[B, T, H, V]` in the dtype of the values; zeros for a fully masked query.
    """

    def attend(
        query: Array,
        key: Array,
        value: Array | None,
        key_bias: Array | None,
        mask: Array | None,
    ) -> Array:
        operands = without_unused_keys(heads_first(query, key, value, key_bias, mask))
        return _attend(
            operands._replace(
                query=prepared(operands.query, prepare_query),
                key=prepared(operands.key, prepare_key),
            ),
            scale,
            interpret,
        )

    # What is prepared and padded is made again for the gradient; of the kernel, results are kept.
    policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
    remembered = jax.checkpoint(attend, policy=policy)
    return _on_each_device(remembered, query, key, value, key_bias, mask)


def block_length(length: int, row_bytes: int) -> int:
    """Chooses the length of blocks: the longest of those that an axis is padded least for.

    Args:
      length: Length of the axis.
      row_bytes: Bytes of the widest row of queries, keys or values.
    """
    most = next(rows for limit, rows in BLOCKS.items() if row_bytes <= limit)
    return min(range(most, 0, -LANES), key=lambda block: -length % block)


def _attend(operands: Operands, scale: float, interpret: bool) -> Array:
    query, key, value, bias, mask = operands
    value = key if value is None else value
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    if bias is not None:
        query, key = _with_bias(
            query, key, bias if mask is None else jnp.where(mask.any(2, keepdims=True), bias, 0)
        )
    (_, heads, rows, channels), keys = query.shape, key.shape[2]
    row_bytes = max(channels, value.shape[-1]) * query.dtype.itemsize
    block_q, block_kv = block_length(rows, row_bytes), block_length(keys, row_bytes)
    query, key, value = _padded(query, block_q), _padded(key, block_kv), _padded(value, block_kv)
    everything = splash_attention_mask.FullMask((query.shape[2], key.shape[2]))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=_KEPT,
        interpret=interpret,
    )
    used = _used_keys(mask, keys, key.shape[2])
    if used is None:
        output = jax.vmap(kernel)(query, key, value)
    else:  # queries attend to keys of their own segment, 1
        of_queries = jnp.ones(query.shape[2], jnp.int32)

        def with_segments(query: Array, key: Array, value: Array, used: Array) -> Array:
            segments = splash_attention_kernel.SegmentIds(of_queries, used)
            return kernel(query, key, value, segments)

        used, axis = (used[0], None) if len(used) == 1 else (used, 0)
        output = jax.vmap(with_segments, in_axes=(0, 0, 0, axis))(query, key, value, used)
    output = output[:, :, :rows]
    if mask is not None:
        output = jnp.where(mask.any(-1, keepdims=True), output, 0)
    return jnp.moveaxis(output, 1, 2)


def _used_keys(mask: Array | None, keys: int, padded: int) -> Array | None:
    """Integers `[B, padded]` or `[1, padded]`, 1 for keys that are attended to; None: all are."""
    if mask is None and keys == padded:
        return None
    used = jnp.ones((1, 1), bool) if mask is None else mask.any(2)[:, 0]
    used = jnp.broadcast_to(used, (len(used), keys)).astype(jnp.int32)
    return jnp.pad(used, ((0, 0), (0, padded - keys)))


def _with_bias(query: Array, key: Array, bias: Array) -> tuple[Array, Array]:
    """Gives queries channels of ones, and keys the bias in parts of eight bits.

    So it keeps its 24 bits also where bfloat16 is multiplied.
    """
    bias = jnp.moveaxis(bias, 2, 3)  # [B, H, S, 1]
    parts, rest = [], jax.lax.stop_gradient(bias)
    for _ in range(BIAS_CHANNELS):
        part = rest.astype(jnp.bfloat16).astype(jnp.float32)
        parts.append(part)
        rest -= part
    parts[0] += bias - jax.lax.stop_gradient(bias)  # 0, with a gradient
    ones = jnp.ones((*query.shape[:-1], BIAS_CHANNELS), query.dtype)
    parts = [part.astype(key.dtype) for part in parts]
    return jnp.concatenate([query, ones], -1), jnp.concatenate([key, *parts], -1)


def _padded(x: Array, block: int) -> Array:
    missing = -x.shape[2] % block
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else x


def _on_each_device(attend: Callable[..., Array], query: Array, *others: Array | None) -> Array:
    """Lets each device attend for its part of the examples; all of them for all if none divides."""
    sharding = jax.typeof(query).sharding
    mesh = sharding.mesh if not sharding.mesh.empty else jax.sharding.get_abstract_mesh()
    names = [
        n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t != AxisType.Manual
    ]
    if not names:
        return attend(query, *others)
    divided = PartitionSpec(tuple(sharding.spec)[0])
    if AxisType.Explicit not in mesh.axis_types:
        automatic = tuple(names)
        if query.shape[0] % math.prod(mesh.shape[n] for n in automatic) == 0:
            divided = PartitionSpec(automatic)
    specs = [
        None if x is None else divided if len(x) == len(query) else PartitionSpec()
        for x in (query, *others)
    ]
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=divided,
        axis_names=set(names),
        check_vma=False,
    )(query, *others)
