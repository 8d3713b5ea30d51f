"""From latents to outputs: average and project (ICML), or output queries that attend (IO).

The output layers compute in float32 whatever the latents are: in bfloat16 many logits would tie.

Source: Perceiver, appendix C; Perceiver IO, section 3 and appendix E.
"""

import dataclasses
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.attention import CrossAttend
from perceiver_jax.errors import Refused
from perceiver_jax.inputs import extract_patches
from perceiver_jax.layers import Linear
from perceiver_jax.recording import no_recording


@dataclasses.dataclass
class AverageDecoder(hk.Module):
    """The mean of the latents through one Linear (`output`) that starts at zero."""

    output_channels: int
    name: str | None = None

    def __call__(self, latents: Array) -> Array:  # [B, N, D] -> [B, output_channels] float32
        average = latents.mean(axis=1, dtype=jnp.float32)
        return Linear(self.output_channels, jnp.zeros, name='output')(average)


@dataclasses.dataclass
class QueryDecoder(hk.Module):
    """Output queries look at the latents once (`cross_attend`), then one Linear (`output`)."""

    output_channels: int | None  # None: as wide as the queries, without the Linear
    num_heads: int = 1
    qk_channels: int | None = None  # None: the channels of the latents
    v_channels: int | None = None  # None: qk_channels
    widening_factor: int = 1
    use_query_residual: bool = True
    zero_init_output: bool = False
    dropout_rate: float = 0.0
    implementation: str = 'auto'  # of `attend`
    name: str | None = None

    def __call__(
        self,
        queries: Array,  # [B, O, E]
        latents: Array,  # [B, N, D]
        query_mask: Array | None = None,  # [B, O]; a false query attends to nothing
        *,
        is_training: bool,
    ) -> Array:  # [B, O, output_channels] float32; without a Linear [B, O, E]
        mask = None if query_mask is None else query_mask[:, :, None]
        x = CrossAttend(
            self.num_heads,
            self.qk_channels,
            self.v_channels,
            self.widening_factor,
            self.use_query_residual,
            self.dropout_rate,
            self.implementation,
            name='cross_attend',
        )(queries, latents, mask, is_training=is_training)
        if self.output_channels is None:
            return x
        w_init = jnp.zeros if self.zero_init_output else None
        return Linear(self.output_channels, w_init, name='output')(x.astype(jnp.float32))


@dataclasses.dataclass
class ClassQueryDecoder(hk.Module):
    """A single learned output query (`query` `[1, query_channels]`) that decodes to logits."""

    num_classes: int
    query_channels: int = 1024
    query_init_std: float = 0.02
    use_query_residual: bool = True
    implementation: str = 'auto'  # of `attend`
    name: str | None = None

    def __call__(self, latents: Array, *, is_training: bool) -> Array:  # -> [B, num_classes]
        init = hk.initializers.TruncatedNormal(self.query_init_std)
        query = hk.get_parameter('query', (1, self.query_channels), jnp.float32, init)
        queries = jnp.broadcast_to(query.astype(latents.dtype), (latents.shape[0], *query.shape))
        decoder = QueryDecoder(
            self.num_classes,
            use_query_residual=self.use_query_residual,
            implementation=self.implementation,
            name='query_decoder',
        )
        return decoder(queries, latents, is_training=is_training)[:, 0]


@dataclasses.dataclass
class FlowUpsample(hk.Module):
    """Flow at full size from features of a coarse grid, by attention over 3x3 of its cells.

    A Linear (`flow`) gives the flow of each cell. Each of a cell's pixels gets an average of the
    flow of the cell and its eight neighbours, with weights of its own, the softmax of a Linear
    (`weights`). Differs from RAFT's: a single Linear each, and beyond the border the flow goes on
    as it is, instead of being zero.

    Source: Perceiver IO, appendix H; Teed and Deng, RAFT, 2020, section 3.3.
    """

    factor: int = 4  # pixels of either side of a cell
    zero_init_output: bool = False
    name: str | None = None

    def __call__(self, features: Array) -> Array:  # [B, h, w, C] -> [B, h factor, w factor, 2]
        batch, rows, columns, _ = features.shape
        w_init = jnp.zeros if self.zero_init_output else None
        flow = Linear(2, w_init, name='flow')(features)
        weights = Linear(9 * self.factor**2, name='weights')(features)
        weights = weights.reshape(batch, rows, columns, self.factor, self.factor, 9)
        around = jnp.pad(flow, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
        around = extract_patches(around, 3)[:, 1:-1, 1:-1].reshape(batch, rows, columns, 9, 2)
        # Rows and columns of cells h, w; of pixels in a cell y, x; neighbours k.
        flow = jnp.einsum('bhwyxk,bhwkc->bhywxc', jax.nn.softmax(weights), around)
        return flow.reshape(batch, rows * self.factor, columns * self.factor, 2)


def decode_in_chunks(
    decode: Callable[[Array], Array], num_queries: int, chunk_size: int | None
) -> Array:
    """Decodes many output queries a chunk at a time: only one chunk's attention ever exists.

    Args:
      decode: From indices `[O]` of queries to their outputs `[B, O, E]`. It makes the queries
        itself, so that they need not all exist at once either.
      num_queries: How many there are.
      chunk_size: Queries of a chunk; None: all at once.

    Returns:
      `[B, num_queries, E]`. `record_attention` sees nothing of what is decoded in several chunks.

    Raises:
      ValueError: A chunk of nothing.

    Source: Perceiver IO, section 3: outputs do not depend on each other.
    """
    if chunk_size is not None and chunk_size < 1:
        raise Refused(f'chunk_size must be at least 1, not {chunk_size}.')
    queries = jnp.arange(num_queries)
    if chunk_size is None or chunk_size >= num_queries:
        return decode(queries)
    queries = jnp.pad(queries, (0, -num_queries % chunk_size), mode='edge')
    with no_recording():
        outputs = hk.map(decode, queries.reshape(-1, chunk_size))  # [chunks, B, chunk_size, E]
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])[:, :num_queries]
