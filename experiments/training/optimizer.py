"""The optimizer: LAMB as both papers train with it, AdamW, SGD, and the learning-rate schedules."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from perceiver_jax.errors import Refused
from perceiver_jax.weights.trees import Tree

# Updates made so far -> learning rate, or what the peak rate is multiplied by.
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_optimizer(
    total_steps: int,
    steps_per_epoch: float,
    *,
    learning_rate: float,
    schedule: Mapping,
    weight_decay: float,
    clip_norm: float,
    loaded_scale: float = 1.0,
    loaded: Collection[str] = (),
    **direction: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Makes LAMB, AdamW, or SGD with momentum, by the arguments.

    LAMB clips the gradients, scales as Adam, decays, scales by the trust ratio, and steps. The
    trust ratio |w| / |update| applies to every tensor, biases and norms included, is not clipped,
    and is 1 where either norm is 0. Without it this is AdamW. SGD clips, adds the decay to the
    gradients, averages, and steps.

    Args:
      total_steps: Updates of the whole run, the length of the schedule.
      steps_per_epoch: Updates that make one epoch, for schedules told in epochs.
      learning_rate: The peak learning rate.
      schedule: `{'kind': a key of SCHEDULES}` and the keyword arguments of that function.
      weight_decay: Factor of the weights that are added to Adam's update before the trust ratio, or
        to the gradients of SGD.
      clip_norm: Largest global norm of the gradients; greater ones are scaled down to it.
      loaded_scale: What the learning rate of parameters that were loaded is multiplied by; their
        decay shrinks with it.
      loaded: Flat names of the parameters that were loaded, such as 'encoder:latents'.
      **direction: The arguments of `_lamb` or of `_sgd`.

    Returns:
      The transformation, and the schedule: updates made so far -> learning rate.

    Raises:
      Refused: The schedule's kind or arguments are not known.

    Source:
      You et al. 2020 (LAMB); Perceiver IO, appendix A.1 (the order, decay and clipping).
    """
    multiplier = _make_schedule(total_steps, steps_per_epoch, **schedule)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        return learning_rate * multiplier(step)

    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        *(_sgd if 'momentum' in direction else _lamb)(decay, **direction),
        optax.scale_by_learning_rate(rate),
        optax.masked(optax.scale(loaded_scale), functools.partial(_are_named, names=set(loaded))),
    )
    return optimizer, rate


def _lamb(
    decay: optax.GradientTransformation, *, b1: float, b2: float, eps: float, trust_ratio: bool
) -> list[optax.GradientTransformation]:
    """The parts of LAMB, or of AdamW, between clipping and the learning rate.

    Args:
      decay: Adds the decayed weights.
      b1: Decay rate of Adam's average of the gradients.
      b2: Decay rate of Adam's average of the squared gradients.
      eps: Added to the square root of that average, against a division by 0.
      trust_ratio: Whether to scale each tensor's update by its trust ratio.
    """
    return [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        decay,
        optax.scale_by_trust_ratio() if trust_ratio else optax.identity(),
    ]


def _sgd(
    decay: optax.GradientTransformation, *, momentum: float
) -> list[optax.GradientTransformation]:
    """The parts of SGD between clipping and the learning rate.

    Args:
      decay: Adds the decayed weights.
      momentum: Share of the last update that the next one keeps; the gradients are added to it.
    """
    return [decay, optax.trace(decay=momentum)]


def _are_named(params: Tree, names: Collection[str]) -> dict[str, dict[str, bool]]:
    return {
        module: {name: f'{module}:{name}' in names for name in tensors}
        for module, tensors in params.items()
    }


def decays(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Marks the tensors that weight decay acts on: all but biases and normalisation parameters.

    Args:
      params: Haiku's parameters, `{module: {name: array}}`. Latents and learned positions decay.

    Returns:
      Whether each tensor decays, `{module: {name: bool}}`.

    Source:
      DeepMind's Perceiver IO release.
    """
    exempt = ('b', 'scale', 'offset')
    return {
        module: {name: name not in exempt for name in tensors} for module, tensors in params.items()
    }


def constant(total_steps: int, steps_per_epoch: float) -> Schedule:
    """Keeps the peak rate throughout (ModelNet40).

    Args:
      total_steps: Updates of the whole run.
      steps_per_epoch: Updates that make one epoch.

    Returns:
      The schedule, as a multiplier of the peak rate.
    """
    return lambda step: jnp.ones(())


def step_decay(
    total_steps: int, steps_per_epoch: float, *, boundary_epochs: Sequence[float], factor: float
) -> Schedule:
    """Multiplies the rate by a factor after each of some epochs (the Perceiver on ImageNet).

    Args:
      total_steps: Updates of the whole run.
      steps_per_epoch: Updates that make one epoch.
      boundary_epochs: Epochs after which the rate falls.
      factor: What the rate is multiplied by at each boundary.

    Returns:
      The schedule, as a multiplier of the peak rate.
    """
    boundaries = jnp.array([epoch * steps_per_epoch for epoch in boundary_epochs])
    return lambda step: factor ** jnp.sum(step >= boundaries)


def flat_cosine(total_steps: int, steps_per_epoch: float, *, flat_fraction: float) -> Schedule:
    """Keeps the peak rate for a fraction of the run, then a cosine to 0 (Perceiver IO on ImageNet).

    Args:
      total_steps: Updates of the whole run.
      steps_per_epoch: Updates that make one epoch.
      flat_fraction: Share of the run before the cosine.

    Returns:
      The schedule, as a multiplier of the peak rate.
    """
    flat_steps = flat_fraction * total_steps
    return lambda step: _cosine((step - flat_steps) / (total_steps - flat_steps))


def cosine(total_steps: int, steps_per_epoch: float, *, warmup_steps: int) -> Schedule:
    """Makes a linear warm-up, then a cosine to 0 (optical flow without, language with warm-up).

    Args:
      total_steps: Updates of the whole run.
      steps_per_epoch: Updates that make one epoch.
      warmup_steps: Updates of the warm-up; 0 for none.

    Returns:
      The schedule, as a multiplier of the peak rate.

    Raises:
      Refused: The run is not longer than its warm-up.
    """
    if warmup_steps >= total_steps:
        raise Refused(
            f'config.optimizer.schedule.warmup_steps is {warmup_steps}, and the run has '
            f'{total_steps} updates'
        )

    def multiplier(step):
        # The first update takes 1 / warmup_steps of the rate, not 0, and is not wasted;
        # our choice: deviations.md#warm-up
        warmup = jnp.minimum((step + 1) / max(warmup_steps, 1), 1)
        return warmup * _cosine((step - warmup_steps) / (total_steps - warmup_steps))

    return multiplier


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    'constant': constant,
    'step': step_decay,
    'flat_cosine': flat_cosine,
    'cosine': cosine,
}
OF_ANY_LENGTH = ('constant', 'step')  # those that do not depend on `total_steps`


def _cosine(progress: jax.typing.ArrayLike) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


def _make_schedule(
    total_steps: int, steps_per_epoch: float, *, kind: str, **arguments: Any
) -> Schedule:
    if kind not in SCHEDULES:
        raise Refused(
            f'config.optimizer.schedule.kind is {kind!r}, it must be one of {", ".join(SCHEDULES)}'
        )
    expected = inspect.getfullargspec(SCHEDULES[kind]).kwonlyargs
    if sorted(arguments) != sorted(expected):
        raise Refused(
            f'config.optimizer.schedule has {sorted(arguments)} beside the kind, '
            f'{kind!r} takes {sorted(expected)}'
        )
    return SCHEDULES[kind](total_steps, steps_per_epoch, **arguments)
