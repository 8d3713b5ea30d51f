"""From latents to outputs: average and project (ICML), or output queries that attend (IO).

The output layers compute in float32 whatever the latents are: in bfloat16 many logits would tie.

Source: Perceiver, appendix C; Perceiver IO, section 3 and appendix E.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.attention import CrossAttend, check_attend
from perceiver_jax.checks import Module, check_axes, check_fields, check_integers
from perceiver_jax.errors import Refused
from perceiver_jax.grids import FourierGrid
from perceiver_jax.inputs import extract_patches
from perceiver_jax.layers import Linear, check_floating
from perceiver_jax.recording import no_recording
from perceiver_jax.sharding import for_each_example


@dataclasses.dataclass
class AverageDecoder(Module):
    """The mean of the latents through one Linear that starts at zero, as in the ICML paper.

    Parameters: module `output`.

    Attributes:
      output_channels: Number of outputs, such as logits.
      name: Name of the module.
    """

    output_channels: int
    name: str | None = None

    def __call__(self, latents: Array) -> Array:
        """Averages and projects.

        Args:
          latents: `[B, N, D]`.

        Returns:
          `[B, output_channels]` float32.

        Raises:
          Refused: The latents have other axes, or are not of a floating-point dtype.
        """
        check_floating('AverageDecoder', latents=latents)
        check_axes('AverageDecoder', latents=(latents, 'B N D'))
        average = latents.mean(axis=1, dtype=jnp.float32)
        return Linear(self.output_channels, jnp.zeros, name='output')(average)


@dataclasses.dataclass
class QueryDecoder(Module):
    """Output queries attend to the latents once, then one Linear, as in Perceiver IO.

    Parameters: modules `cross_attend` and `output`.

    Attributes:
      output_channels: Number of output channels; None: as many as the queries have, without the
        Linear.
      cross_attend: Fields of `CrossAttend`, but `implementation` and `name`: `num_heads` (1),
        `qk_channels` (None: channels of the latents), `v_channels` (None: `qk_channels`),
        `widening_factor` (1), `use_query_residual` (True), `dropout_rate` (0).
      zero_init_output: Whether the Linear starts at zero.
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      name: Name of the module.
    """

    output_channels: int | None
    _: dataclasses.KW_ONLY
    cross_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    zero_init_output: bool = False
    implementation: str = 'auto'
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_fields(CrossAttend, self.cross_attend)

    def __call__(
        self,
        queries: Array | FourierGrid,
        latents: Array,
        query_mask: Array | None = None,
        *,
        is_training: bool,
    ) -> Array:
        """Decodes an output for each query.

        Args:
          queries: `[B, O, E]`, or a grid of them.
          latents: `[B, N, D]`.
          query_mask: Boolean `[B, O]`; where it is false, the query attends to nothing and its
            output means nothing; None: true everywhere.
          is_training: Whether dropout is applied.

        Returns:
          `[B, O, output_channels]` float32; without a Linear `[B, O, E]` in the dtype of the
          queries.

        Raises:
          Refused: The heads do not divide the channels, the shapes do not fit together, or an array
            is not of a floating-point dtype.
        """
        check_floating('QueryDecoder', queries=queries, latents=latents)
        check_axes('QueryDecoder', queries=(queries, 'B O E'), latents=(latents, 'B N D'))
        where = f'{self.name}.cross_attend'
        check_attend(where, CrossAttend, self.cross_attend, latents.shape[-1])
        mask = None
        if query_mask is not None:
            axes = '1 O' if np.shape(query_mask)[:1] == (1,) else 'B O'  # one for all examples
            check_axes('QueryDecoder', queries=(queries, 'B O E'), query_mask=(query_mask, axes))
            mask = query_mask[:, :, None]
        cross_attend = CrossAttend(
            **self.cross_attend, implementation=self.implementation, name='cross_attend'
        )
        x = cross_attend(queries, latents, mask, is_training=is_training)
        if self.output_channels is None:
            return x
        w_init = jnp.zeros if self.zero_init_output else None
        return Linear(self.output_channels, w_init, name='output')(x.astype(jnp.float32))


@dataclasses.dataclass
class ClassQueryDecoder(Module):
    """A single learned output query that is decoded to logits.

    Parameters: `query` `[1, query_channels]`, module `query_decoder`.

    Attributes:
      num_classes: Number of logits.
      query_channels: E, channels of the query.
      query_init_std: Standard deviation of the initial query, truncated at two of them.
      cross_attend: Fields of `CrossAttend`, but `implementation` and `name`: `num_heads` (1),
        `qk_channels` (None: channels of the latents), `v_channels` (None: `qk_channels`),
        `widening_factor` (1), `use_query_residual` (True), `dropout_rate` (0).
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      name: Name of the module.
    """

    num_classes: int
    _: dataclasses.KW_ONLY
    query_channels: int = 1024
    query_init_std: float = 0.02
    cross_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implementation: str = 'auto'
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_fields(CrossAttend, self.cross_attend)

    def __call__(self, latents: Array, *, is_training: bool) -> Array:
        """Decodes the logits.

        Args:
          latents: `[B, N, D]`.
          is_training: Whether dropout is applied.

        Returns:
          Logits `[B, num_classes]` float32.

        Raises:
          Refused: The heads do not divide the channels, or the latents have other axes or are not
            of a floating-point dtype.
        """
        check_floating('ClassQueryDecoder', latents=latents)
        check_axes('ClassQueryDecoder', latents=(latents, 'B N D'))
        where = f'{self.name}.cross_attend'  # the query decoder would name itself
        check_attend(where, CrossAttend, self.cross_attend, latents.shape[-1])
        init = hk.initializers.TruncatedNormal(self.query_init_std)
        query = hk.get_parameter('query', (1, self.query_channels), jnp.float32, init)
        queries = for_each_example(query.astype(latents.dtype), latents)
        decoder = QueryDecoder(
            self.num_classes,
            cross_attend=self.cross_attend,
            implementation=self.implementation,
            name='query_decoder',
        )
        return decoder(queries, latents, is_training=is_training)[:, 0]


@dataclasses.dataclass
class FlowUpsample(Module):
    """Flow at full size from features of a coarse grid, by attention over 3x3 of its cells.

    A Linear (`flow`) gives the flow of each cell. Each of a cell's pixels gets an average of the
    flow of the cell and its eight neighbours, with weights of its own, the softmax of a Linear
    (`weights`). Differs from RAFT's: a single Linear each, and beyond the border the flow is that
    of the nearest cell, instead of being zero.

    Parameters: modules `flow` and `weights`.

    Source: Perceiver IO, appendix H; Teed and Deng, RAFT, 2020, section 3.3.

    Attributes:
      factor: Pixels of either side of a cell.
      zero_init_output: Whether the flow of the cells starts at zero.
      name: Name of the module.
    """

    factor: int = 4
    _: dataclasses.KW_ONLY
    zero_init_output: bool = False
    name: str | None = None

    def __call__(self, features: Array) -> Array:
        """Computes the flow of every pixel.

        Args:
          features: `[B, rows, columns, C]` of the cells.

        Returns:
          `[B, rows * factor, columns * factor, 2]` in the dtype of `features`.

        Raises:
          Refused: The features have other axes, or are not of a floating-point dtype.
        """
        check_floating('FlowUpsample', features=features)
        check_axes('FlowUpsample', features=(features, 'B rows columns C'))
        batch, rows, columns, _ = features.shape
        w_init = jnp.zeros if self.zero_init_output else None
        flow = Linear(2, w_init, name='flow')(features)
        weights = Linear(9 * self.factor**2, name='weights')(features)
        weights = weights.reshape(batch, rows, columns, self.factor, self.factor, 9)
        around = jnp.concatenate([flow[:, :1], flow, flow[:, -1:]], axis=1)
        around = jnp.concatenate([around[:, :, :1], around, around[:, :, -1:]], axis=2)
        around = extract_patches(around, 3)[:, 1:-1, 1:-1].reshape(batch, rows, columns, 9, 2)
        # Rows and columns of cells h, w; of pixels in a cell y, x; neighbours k.
        flow = jnp.einsum('bhwyxk,bhwkc->bhywxc', jax.nn.softmax(weights), around)
        return flow.reshape(batch, rows * self.factor, columns * self.factor, 2)


def decode_in_chunks(
    decode: Callable[[Array], Array],
    num_queries: int,
    chunk_size: int | None,
    *,
    group_size: int = 1,
) -> Array:
    """Decodes many output queries a chunk at a time: only one chunk's attention ever exists.

    Args:
      decode: Function from indices `[O]` of queries to their outputs `[B, O, E]`. It makes the
        queries itself, so that they need not all exist at once either. With groups, from indices
        `[G]` of groups to `[B, G * group_size, E]`.
      num_queries: Number of queries.
      chunk_size: Queries of a chunk; None: all at once. Groups are not cut, one is the least.
      group_size: Queries of a group, such as a row of a grid; it divides `num_queries`.

    Returns:
      `[B, num_queries, E]`. `record_attention` collects nothing of what is decoded in several
      chunks.

    Raises:
      Refused: If `chunk_size` is less than 1, or a number is no integer, or groups do not divide
        the queries.

    Source: Perceiver IO, section 3: outputs do not depend on each other.
    """
    check_integers('decode_in_chunks', num_queries=num_queries, group_size=group_size)
    if chunk_size is not None:
        check_integers('decode_in_chunks', chunk_size=chunk_size)
    if chunk_size is not None and chunk_size < 1:
        raise Refused(f'chunk_size must be at least 1, not {chunk_size}.')
    if group_size < 1 or num_queries % group_size:
        raise Refused(f'Groups of {group_size} do not divide {num_queries} queries.')
    groups = jnp.arange(num_queries // group_size)
    if chunk_size is None or chunk_size >= num_queries:
        return decode(groups)
    groups_at_a_time = max(chunk_size // group_size, 1)
    groups = jnp.pad(groups, (0, -len(groups) % groups_at_a_time), mode='edge')
    with no_recording():
        outputs = hk.map(decode, groups.reshape(-1, groups_at_a_time))  # [chunks, B, O, E]
    outputs = jnp.moveaxis(outputs, 0, 1)
    batch, chunks, size, channels = outputs.shape
    return outputs.reshape(batch, chunks * size, channels)[:, :num_queries]
