"""Shared by the configs of all tasks: names of variants, the papers' figures, optimizers."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import ml_collections

# Option -> its possible values as written -> their meaning.
Options = Mapping[str, Mapping[str, Any]]


class Paper(NamedTuple):
    """What a paper states of a model; None: nothing.

    Attributes:
      source: The paper and its table, such as 'ICML table 1'.
      value: The headline metric: a fraction, or an end-point error in pixels.
      parameters: Number of parameters.
      flops: Multiplications plus additions of a forward pass.
    """

    source: str | None = None
    value: float | None = None
    parameters: float | None = None
    flops: float | None = None


NOT_IN_PAPER = Paper()
YES_NO = {'yes': True, 'no': False}  # values of an option
RECIPES = {'recipe': {'fine_tune': 'fine_tune'}}  # an option: see `fine_tune`


def near_misses(name: str, known: Collection[str]) -> str:
    """Returns a sentence for error messages: the names that may have been meant, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f'Did you mean {" or ".join(close)}?'
    return f'Known: {", ".join(known)}.' if known else 'There are none.'


def parse_variant(text: str, variants: Mapping[str, Options]) -> tuple[str, dict[str, Any]]:
    """Splits 'perceiver,cross_attends=4,placement=start' into a variant and its options.

    Args:
      text: What follows the colon in `--config=configs/<task>.py:<text>`.
      variants: The options of each variant.

    Returns:
      The variant's name, and a dict option -> meaning of the value, for the options given.

    Raises:
      ValueError: An unknown variant, option or value; it names the near misses.
    """
    variant, *assignments = text.split(',')
    if variant not in variants:
        raise ValueError(f'Unknown variant {variant!r}. {near_misses(variant, variants)}')
    options, chosen = variants[variant], {}
    for assignment in assignments:
        name, _, value = assignment.partition('=')
        if name not in options:
            raise ValueError(
                f'Variant {variant!r} has no option {name!r}. {near_misses(name, options)}'
            )
        if value not in options[name]:
            raise ValueError(f'{name}={value!r} of a variant: {near_misses(value, options[name])}')
        chosen[name] = options[name][value]
    return variant, chosen


def lamb(learning_rate: float, schedule: dict[str, object]) -> dict[str, object]:
    """LAMB with Perceiver IO's constants (appendix A.1 and the released trainer)."""
    return dict(
        learning_rate=learning_rate,
        schedule=schedule,
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        weight_decay=0.1,
        clip_norm=10.0,
        trust_ratio=True,
        loaded_scale=1.0,  # of the learning rate of what config.init_from gave
    )


def adamw(learning_rate: float, schedule: dict[str, object]) -> dict[str, object]:
    """AdamW, for few steps on little data: under LAMB what starts at zero grows slowly."""
    return {**lamb(learning_rate, schedule), 'trust_ratio': False}


def sgd(learning_rate: float, schedule: dict[str, object]) -> dict[str, object]:
    """SGD with momentum, the usual one for residual networks."""
    return dict(
        learning_rate=learning_rate,
        schedule=schedule,
        momentum=0.9,
        weight_decay=1e-4,
        clip_norm=10.0,
        loaded_scale=1.0,  # of the learning rate of what config.init_from gave
    )


def set_network(config: ml_collections.ConfigDict, network: dict[str, object]) -> None:
    """Puts one of the networks of `perceiver_jax.baselines` in the place of a Perceiver.

    Args:
      config: The config of a variant; changed in place.
      network: The arguments `network` of `image_baseline`.
    """
    del config.model.encoder
    config.model.network = network


def resnet(
    blocks: tuple[int, ...] = (3, 4, 6, 3), channels: int = 64, stem: str = 'imagenet'
) -> dict[str, object]:
    """ResNet-50, or another one; see `perceiver_jax.baselines.resnet.ResNet`."""
    return dict(kind='resnet', blocks=blocks, channels=channels, stem=stem, padding='same')


def vit(
    patch_size: int = 16, channels: int = 768, num_self_attends: int = 12, num_heads: int = 12
) -> dict[str, object]:
    """ViT-B/16, or another one; see `VisionTransformer`."""
    return dict(
        kind='vit',
        patch_size=patch_size,
        channels=channels,
        num_self_attends=num_self_attends,
        self_attend=dict(num_heads=num_heads, widening_factor=4, dropout_rate=0.0),
    )


def transformer(
    channels: int = 512, num_self_attends: int = 12, num_heads: int = 8
) -> dict[str, object]:
    """A Transformer of all elements, of sizes that are not the paper's; see `PixelTransformer`."""
    return dict(
        kind='transformer',
        channels=channels,
        num_self_attends=num_self_attends,
        self_attend=dict(num_heads=num_heads, widening_factor=1, dropout_rate=0.0),
    )


def fine_tune(config: ml_collections.ConfigDict, steps: int) -> None:
    """Turns a variant's recipe into one for weights that `config.init_from` names.

    A quarter of the peak learning rate, half of the steps flat and then a cosine to 0; as many
    classes as the data has. It is our choice: deviations.md#fine-tuning.

    Args:
      config: The config of a variant; changed in place.
      steps: Updates of the run.
    """
    config.optimizer.learning_rate /= 4
    config.optimizer.schedule = dict(kind='flat_cosine', flat_fraction=0.5)
    set_steps(config, steps)
    if 'num_classes' in config.model:
        config.model.num_classes = 0


def set_steps(config: ml_collections.ConfigDict, steps: int) -> None:
    """Has a run end after some updates, and evaluates and saves four times at least."""
    config.train.epochs = ml_collections.config_dict.placeholder(float)
    config.train.steps = steps
    for key in ('evaluate_every_steps', 'checkpoint_every_steps'):
        config.train[key] = min(config.train[key], steps // 4)
