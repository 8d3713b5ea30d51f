"""The latents, and the schedule of cross-attends and self-attend blocks that reads into them.

One encoder expresses the ICML Perceiver (cross-attends interleaved with blocks) and Perceiver IO
(one cross-attend, then blocks).

Source: Perceiver, sections 3.1 and 4.1, tables 5-7; Perceiver IO, section 3.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax import limits
from perceiver_jax.attention import CrossAttend, SelfAttend, check_attend
from perceiver_jax.checks import Module, check_axes, check_fields
from perceiver_jax.chunks import platform
from perceiver_jax.errors import Refused
from perceiver_jax.grids import FourierGrid
from perceiver_jax.layers import check_floating
from perceiver_jax.recording import is_recording
from perceiver_jax.sharding import for_each_example, in_mesh_of

Step = tuple[str, int]  # 'cross_attend' or 'block', and its number: what has its own weights


def schedule(
    num_cross_attends: int,
    num_blocks: int,
    *,
    cross_attend_placement: str = 'interleaved',
    share_cross_attends: bool = True,
    share_blocks: bool = True,
) -> list[Step]:
    """Lists what the encoder applies, in order, and which weights each application uses.

    Shared cross-attends are all but the first, which keeps weights of its own: sharing it too
    was unstable. Shared blocks are all blocks, the first included: only so does the parameter
    count of the paper (44.9M) come out.

    Args:
      num_cross_attends: How often the latents attend to the inputs.
      num_blocks: How many blocks of self-attends are applied.
      cross_attend_placement: 'start', all in front of the blocks, or 'interleaved', spread over
        the blocks as evenly as they divide.
      share_cross_attends: Whether the cross-attends after the first share weights.
      share_blocks: Whether all blocks share weights.

    Returns:
      Names of modules such as `[('cross_attend', 1), ('block', 1), ('cross_attend', 2),
      ('block', 1), ...]`: the same name is the same module with the same weights.

    Raises:
      Refused: The placement is unknown, there is no cross-attend or no block, there are more of
        them than `limits` allows, or more cross-attends than blocks to interleave them with.

    Source: Perceiver, section 4.1 and table 7 (sharing), table 6 (placement).
    """
    if cross_attend_placement not in ('start', 'interleaved'):
        raise Refused(
            "cross_attend_placement must be 'start' or 'interleaved', "
            f'not {cross_attend_placement!r}.'
        )
    limits.check_steps('cross-attends and blocks', num_cross_attends + num_blocks)
    interleaved = cross_attend_placement == 'interleaved'
    if num_cross_attends < 1 or num_blocks < 1:
        raise Refused(
            'num_cross_attends and num_blocks must be at least 1, '
            f'not {num_cross_attends} and {num_blocks}.'
        )
    if interleaved and num_cross_attends > num_blocks:
        raise Refused(
            f'{num_cross_attends} cross-attends cannot be interleaved with {num_blocks} blocks.'
        )
    cross_attends = [
        ('cross_attend', min(i, 2) if share_cross_attends else i)
        for i in range(1, num_cross_attends + 1)
    ]
    blocks = [('block', 1 if share_blocks else i) for i in range(1, num_blocks + 1)]
    if not interleaved:
        return cross_attends + blocks
    steps = []
    for i, block in enumerate(blocks):
        # Evenly, as the paper does not say where 2 or 4 of them stand among 8 blocks;
        # our choice: deviations.md#interleaved-cross-attends
        steps += [
            c for j, c in enumerate(cross_attends) if j * num_blocks // num_cross_attends == i
        ]
        steps.append(block)
    return steps


def repeats(steps: Sequence[Step]) -> list[tuple[list[Step], int]]:
    """Groups steps into runs that repeat, so that each can be compiled once.

    `[c1, b, c2, b, c2, b]` is `[c1]` once, then `[b, c2]` twice, then `[b]` once.

    Args:
      steps: Names of modules in order, as `schedule` returns them.

    Returns:
      Pairs of a run and how often it is applied, in order; from front to back, the run that saves
      most is taken.
    """
    found: list[tuple[list[Step], int]] = []
    at = 0
    while at < len(steps):
        best, times = 1, 1  # length of a run, and how often it stands here
        for length in range(1, (len(steps) - at) // 2 + 1):
            if steps[at + length] != steps[at]:  # before anything is copied
                continue
            run, count = steps[at : at + length], 1
            while steps[at + count * length : at + (count + 1) * length] == run:
                count += 1
            if count > 1 and length * (count - 1) > best * (times - 1):
                best, times = length, count
        found.append((list(steps[at : at + best]), times))
        at += best * times
    return found


def with_parameters(
    apply: Callable[[Array], Array], parameters: Mapping[str, Array]
) -> Callable[[Array], Array]:
    """Lets modules have other parameters than their own.

    Args:
      apply: A function of an array that calls modules.
      parameters: Full name -> parameter; those that are not named stay.

    Returns:
      The function with these parameters.
    """

    def get(next_getter, value, context):
        return next_getter(parameters.get(context.full_name, value))

    def applied(x: Array) -> Array:
        with hk.custom_getter(get):
            return apply(x)

    return applied


def gradients_in_order(
    apply: Callable[[Array], Array], module: hk.Module
) -> Callable[[Array], Array]:
    """Lets the gradients of a module's parameters be ready before that of its input.

    Where a module is applied several times, XLA puts off these gradients, to add them all up at the
    end, and keeps all that they are computed of.

    Args:
      apply: A function of an array that calls the module.
      module: The module.

    Returns:
      A function with the same values.
    """

    def applied(x: Array) -> Array:
        x, parameters = jax.lax.optimization_barrier((x, module.params_dict()))
        return with_parameters(apply, parameters)(x)

    return applied


def _either(which: Array, one: hk.Module, other: hk.Module) -> dict[str, Array]:
    """The parameters of one of two modules that are made alike, under the names of the other."""
    ours = {k.removeprefix(other.module_name): v for k, v in other.params_dict().items()}
    theirs = {k.removeprefix(one.module_name): v for k, v in one.params_dict().items()}
    return {other.module_name + k: jnp.where(which, theirs[k], v) for k, v in ours.items()}


@dataclasses.dataclass
class Block(Module):
    """The self-attends between two cross-attends.

    Parameters: modules `self_attend_1`, `self_attend_2`, ...

    Attributes:
      num_self_attends: Number of layers.
      self_attend: Fields of `SelfAttend` that all layers have, but `implementation` and `name`.
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      name: Name of the module.
    """

    num_self_attends: int
    _: dataclasses.KW_ONLY
    self_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implementation: str = 'auto'
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_fields(SelfAttend, self.self_attend)

    def __call__(self, latents: Array, *, is_training: bool) -> Array:
        """Applies the layers one after the other.

        Args:
          latents: `[B, N, D]`.
          is_training: Whether dropout is applied.

        Returns:
          `[B, N, D]` in the dtype of `latents`.

        Raises:
          Refused: The heads do not divide the channels, or the latents have other axes or are not
            of a floating-point dtype.
        """
        check_floating('Block', latents=latents)
        check_axes('Block', latents=(latents, 'B N D'))
        for i in range(1, self.num_self_attends + 1):
            layer = SelfAttend(
                **self.self_attend, implementation=self.implementation, name=f'self_attend_{i}'
            )
            latents = layer(latents, is_training=is_training)
        return latents


@dataclasses.dataclass
class Encoder(Module):
    """Learned latents that attend to the inputs and to each other, in the order of `schedule`.

    The defaults are the latents and depth of both papers' ImageNet models; the ICML Perceiver
    sets `num_cross_attends=8`.

    Parameters: `latents` `[N, D]`, modules `cross_attend_1`, `cross_attend_2`, ..., `block_1`, ...

    Measured with the gradient of the ICML Perceiver on one image of 224x224 (two CPU cores,
    float32): `scan` compiles in 4.1 s what takes 12.6 s written out. `remat_blocks` needs 0.71 GB
    instead of 1.36 GB and 23 % more time, `remat_cross_attends` 1.30 GB and 4 %, both 0.66 GB
    and 22 %.

    Attributes:
      num_latents: N.
      latent_channels: D.
      num_cross_attends: How often the latents attend to the inputs.
      num_blocks: How many blocks of self-attends are applied.
      num_self_attends_per_block: Layers of a block.
      cross_attend_placement: 'interleaved' with the blocks, spread evenly, or all at the 'start'.
      share_cross_attends: Whether the cross-attends after the first share weights.
      share_blocks: Whether all blocks share weights.
      cross_attend: Fields of `CrossAttend`, but `implementation` and `name`: `num_heads` (1),
        `qk_channels` (None: channels of the inputs), `v_channels` (None: `qk_channels`),
        `widening_factor` (1), `use_query_residual` (True), `dropout_rate` (0).
      self_attend: Fields of `SelfAttend`, but `implementation` and `name`: `num_heads` (8),
        `qk_channels` (None: `latent_channels`), `v_channels` (None: `qk_channels`),
        `widening_factor` (1), `dropout_rate` (0).
      latent_init_std: Standard deviation of the initial latents, truncated at two of them.
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      scan: Whether steps that repeat are compiled once, as a loop; otherwise they are written out.
        None: as a loop, but written out on GPUs, where a loop copies all that it keeps for the
        gradient, once to write it and once to read it.
      remat_cross_attends: Whether cross-attends are rematerialised for the gradient: less memory
        for more computation.
      remat_blocks: Whether blocks are rematerialised for the gradient.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    num_latents: int = 512
    latent_channels: int = 1024
    num_cross_attends: int = 1
    num_blocks: int = 8
    num_self_attends_per_block: int = 6
    cross_attend_placement: str = 'interleaved'
    share_cross_attends: bool = True
    share_blocks: bool = True
    cross_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    self_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent_init_std: float = 0.02
    implementation: str = 'auto'
    scan: bool | None = None
    remat_cross_attends: bool = False
    remat_blocks: bool = False
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_fields(CrossAttend, self.cross_attend)
        check_fields(SelfAttend, self.self_attend)

    def __call__(
        self,
        inputs: Array | FourierGrid,
        input_mask: Array | None = None,
        *,
        is_training: bool,
    ) -> Array:
        """Reads the inputs into the latents.

        Args:
          inputs: `[B, M, C]`, the byte array: contents and positions of the input elements. Or a
            grid of them, whose Fourier features are then not multiplied by at all.
          input_mask: Boolean `[B, M]`, true where there is an input element; None: everywhere.
          is_training: Whether dropout is applied.

        Returns:
          Latents `[B, N, D]` in the dtype of `inputs`.

        Raises:
          Refused: The shapes do not fit together, the heads do not divide the channels, the inputs
            are not of a floating-point dtype, there is no such schedule, or it is too long.
        """
        check_floating('Encoder', inputs=inputs)
        check_axes('Encoder', inputs=(inputs, 'B M C'), input_mask=(input_mask, 'B M'))
        for field, module, fields, channels in (
            ('cross_attend', CrossAttend, self.cross_attend, inputs.shape[-1]),
            ('self_attend', SelfAttend, self.self_attend, self.latent_channels),
        ):
            check_attend(f'{self.name}.{field}', module, fields, channels)
        num_self_attends = self.num_blocks * self.num_self_attends_per_block
        limits.check_steps('self-attends', num_self_attends)
        steps = schedule(
            num_cross_attends=self.num_cross_attends,
            num_blocks=self.num_blocks,
            cross_attend_placement=self.cross_attend_placement,
            share_cross_attends=self.share_cross_attends,
            share_blocks=self.share_blocks,
        )
        modules = {step: self._module(*step) for step in dict.fromkeys(steps)}
        mask = None if input_mask is None else input_mask[:, None, :]

        init = hk.initializers.TruncatedNormal(self.latent_init_std)
        shape = (self.num_latents, self.latent_channels)
        latents = hk.get_parameter('latents', shape, jnp.float32, init).astype(inputs.dtype)
        data = inputs.contents if isinstance(inputs, FourierGrid) else inputs
        latents = for_each_example(latents, data)

        def apply(step: Step, latents: Array) -> Array:
            is_block = step[0] == 'block'
            module = functools.partial(modules[step], is_training=is_training)
            if self.remat_blocks if is_block else self.remat_cross_attends:
                module = hk.remat(module)
            return module(latents) if is_block else module(latents, inputs, mask)

        if hk.running_init():  # nobody reads the values
            for step in modules:
                latents = apply(step, latents)
            return latents

        scan = platform() != 'gpu' if self.scan is None else self.scan
        if not scan or is_recording():  # attention weights cannot leave a loop
            for step in steps:
                once_more: Callable[[Array], Array] = functools.partial(apply, step)
                if steps.count(step) > 1:
                    once_more = gradients_in_order(once_more, modules[step])
                latents = once_more(latents)
            return latents

        at = 0
        for run, times in repeats([self._alike(step) for step in steps]):
            first, last = (steps[at + i * len(run) :][: len(run)] for i in (0, times - 1))
            at += times * len(run)
            if times == 1:
                for step in last:
                    latents = apply(step, latents)
                continue

            def turn(latents: Array, i: Array, first=first, last=last) -> tuple[Array, None]:
                for own, step in zip(first, last, strict=True):
                    once_more: Callable[[Array], Array] = functools.partial(apply, step)
                    if last.count(step) > 1:
                        once_more = gradients_in_order(once_more, modules[step])
                    if own != step:
                        parameters = _either(i == 0, modules[own], modules[step])
                        once_more = with_parameters(once_more, parameters)
                    latents = once_more(latents)
                return latents, None

            with in_mesh_of(latents):
                latents, _ = hk.scan(turn, latents, jnp.arange(times))
        return latents

    def _alike(self, step: Step) -> Step:
        """Names a step that does the same, maybe with other weights, by one of them."""
        if self.share_cross_attends and self.num_cross_attends > 1 and step == ('cross_attend', 1):
            return 'cross_attend', 2
        return step

    @hk.name_like('__call__')
    def _module(self, kind: str, number: int) -> CrossAttend | Block:
        if kind == 'cross_attend':
            return CrossAttend(
                **self.cross_attend,
                implementation=self.implementation,
                name=f'cross_attend_{number}',
            )
        return Block(
            self.num_self_attends_per_block,
            self_attend=self.self_attend,
            implementation=self.implementation,
            name=f'block_{number}',
        )
