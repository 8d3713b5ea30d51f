"""Which weights a model takes over from another, and where the arguments of two models differ."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from perceiver_jax.attention import CrossAttend, SelfAttend
from perceiver_jax.baselines.classifiers import NETWORKS
from perceiver_jax.decoder import ClassQueryDecoder, FlowUpsample, QueryDecoder
from perceiver_jax.encoder import Encoder, schedule
from perceiver_jax.errors import Refused
from perceiver_jax.filterbank import FilterbankElements
from perceiver_jax.inputs import (
    FlowInputs,
    ImageInputs,
    TextInputs,
    audio_elements,
    point_elements,
    spectrogram_elements,
    video_elements,
)
from perceiver_jax.models import MODELS
from perceiver_jax.weights.trees import Arrays, Tree, check_fit, flatten, nest, widen

if TYPE_CHECKING:  # which imports this file
    from perceiver_jax.weights.pretrained import Pretrained

# The Linear that makes a classifier's logits, by function: a model has one of those named, with
# `AverageDecoder` or with `ClassQueryDecoder`. The label of `video_autoencoder` is an input too, so
# other classes are other inputs: it has no head that could be replaced.
HEADS = {
    'image_classifier': ('decoder/output', 'decoder/query_decoder/output'),
    'point_classifier': ('decoder/output', 'decoder/query_decoder/output'),
    'audio_visual_classifier': ('decoder/output', 'decoder/query_decoder/output'),
    'image_baseline': ('decoder/output',),
    'point_baseline': ('decoder/output',),
}
_POSITIONS = 'inputs/position_encoding'  # the learned ones of an image


@dataclasses.dataclass(frozen=True, eq=False)
class Transferred:
    """Weights of a model that starts from another, and where each array comes from.

    Attributes:
      params: Parameters of the target, NumPy arrays of its dtypes.
      state: State of the target, likewise.
      taken: Flat names, 'module:parameter', of what is as in the source.
      resampled: Flat names of learned positions that were resampled to the target's image size.
      new: Flat names of what is as in the target: the head, where it starts anew.
    """

    params: Arrays = dataclasses.field(repr=False)
    state: Arrays = dataclasses.field(repr=False)
    taken: tuple[str, ...]
    resampled: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many parameters were 'taken', 'resampled' and are 'new'; state does not count."""
        sizes = {name: np.size(value) for name, value in flatten(self.params).items()}
        return {
            kind: sum(sizes.get(name, 0) for name in getattr(self, kind))
            for kind in ('taken', 'resampled', 'new')
        }


def transfer(
    source: 'Pretrained',
    target: 'Pretrained',
    *,
    new_head: bool | None = None,
    where: str = 'The source',
) -> Transferred:
    """Takes over the weights of one model for another of the same function.

    The rules, for parameters and state alike:

    - What has the same name and shape is taken.
    - The head of a classifier (`HEADS`), weights and bias, starts anew where it is of another
      number of classes, or where both models name their classes and the names or their order
      differ. `new_head` decides otherwise.
    - Learned positions of an image are resampled to the target's image size, as by
      `Pretrained.at_size`. Fourier positions have no weights: they need nothing.
    - All else has to fit. What is missing, left over or of another shape is refused, such as the
      output query where the source averages its latents.

    What shapes do not tell, such as the number of heads, `compare_arguments` does.

    Args:
      source: The model with the weights.
      target: The model that is to start from them, with new weights of its own, such as
        `initialise` makes.
      new_head: True: the head starts anew also where it would fit, since its classes are others.
        False: it is taken also where the names of the classes differ, as two spellings of the same
        classes do. None: as the rules say.
      where: What to call the source in messages, such as its file.

    Returns:
      The target's weights, and which of them come from where.

    Raises:
      Refused: The models are of different functions; there is no head to start anew; or the weights
        do not fit: the message lists names and shapes.
    """
    if source.function != target.function:
        raise Refused(
            f'{where} holds weights of {source.function}, which cannot start {target.function}.'
        )
    if new_head and target.function not in HEADS:
        raise Refused(
            f'{target.function} has no head of classes that could start anew; '
            f'these have: {", ".join(HEADS)}.'
        )
    resampled: set[str] = set()
    if target.function == 'image_classifier' and _POSITIONS in {*source.params} & {*target.params}:
        size = target.front_end['size']
        if source.front_end['size'] != size:
            source, resampled = source.at_size(size), {f'{_POSITIONS}:positions'}
    heads = {
        head: target.params[head]
        for head in HEADS.get(target.function, ())
        if head in source.params and head in target.params
        if (_other_classes(source, target, head) if new_head is None else new_head)
    }
    params = {
        module: {name: widen(np.asarray(value)) for name, value in values.items()}
        for module, values in {**source.params, **heads}.items()
    }
    check_fit(params, source.state, target.params, target.state, where)
    new = {*flatten(heads)}
    names = [*flatten(target.params, target.state)]
    return Transferred(
        params=_as_in(target.params, params),
        state=_as_in(target.state, source.state),
        taken=tuple(name for name in names if name not in new | resampled),
        resampled=tuple(name for name in names if name in resampled),
        new=tuple(name for name in names if name in new),
    )


def _other_classes(source: 'Pretrained', target: 'Pretrained', head: str) -> bool:
    counts = [len(model.params[head]['b']) for model in (source, target)]
    named = [[*model.classes] for model in (source, target) if model.classes is not None]
    return counts[0] != counts[1] or (len(named) == 2 and named[0] != named[1])


def _as_in(model: Tree, found: Tree) -> Arrays:
    """Arrays in the order and of the dtypes of the model that wants them."""
    arrays = flatten(found)
    return nest(
        {name: np.asarray(arrays[name], value.dtype) for name, value in flatten(model).items()}
    )


# Arguments that change how fast a model computes and in what precision, how it is trained, or how
# its weights begin, but not which function of its inputs the weights make it.
NOT_COMPARED = frozenset(
    {
        'dtype',
        'implementation',
        'scan',
        'remat_cross_attends',
        'remat_blocks',
        'chunk_size',
        'dropout_rate',
        'batch_norm_axis',
        'latent_init_std',
        'query_init_std',
        'position_init_std',
        'zero_init_output',
    }
)
_WIDTHS = ('qk_channels', 'v_channels')  # None stands for a number that shapes tell
_ELEMENTS: dict[str, Callable[..., Any]] = {
    'inputs.video': video_elements,
    'inputs.audio': audio_elements,
    'inputs.spectrogram': spectrogram_elements,
}
# What is built of the mappings among a function's arguments, by dotted key.
_BUILT: dict[str, dict[str, Callable[..., Any]]] = {
    'image_classifier': {'inputs': ImageInputs, 'decoder': ClassQueryDecoder},
    'point_classifier': {'inputs': point_elements, 'decoder': ClassQueryDecoder},
    'optical_flow': {'inputs': FlowInputs, 'decoder': QueryDecoder, 'upsampling': FlowUpsample},
    'masked_language_model': {'inputs': TextInputs, 'decoder': QueryDecoder},
    'video_autoencoder': {**_ELEMENTS, 'decoder': QueryDecoder},
    'audio_visual_classifier': {
        **_ELEMENTS,
        'inputs.filterbank': FilterbankElements,
        'decoder': ClassQueryDecoder,
    },
    'image_baseline': {'inputs': ImageInputs, 'network.self_attend': SelfAttend},
    'point_baseline': {'inputs': point_elements, 'network.self_attend': SelfAttend},
}
_BUILT_EVERYWHERE: dict[str, Callable[..., Any]] = {
    'encoder': Encoder,
    'encoder.cross_attend': CrossAttend,
    'encoder.self_attend': SelfAttend,
    'decoder.cross_attend': CrossAttend,
}


def compare_arguments(
    function: str, source: Mapping[str, Any], target: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Finds the arguments in which two models differ, also those that shapes do not show.

    A key that is left out has its default, and lists equal tuples. These are no differences: the
    keys of `NOT_COMPARED`; `qk_channels` and `v_channels` where one side leaves them to the shapes;
    and the arguments of `schedule` where both sides apply the same modules in the same order, such
    as `share_blocks` with a single block.

    Args:
      function: Name of the function of `perceiver_jax.models` that both are arguments of.
      source: Keyword arguments of one model, nested.
      target: Keyword arguments of the other.

    Returns:
      Dotted key, such as 'encoder.self_attend.num_heads' -> its value in the source and in the
      target, lists as tuples; None where a key without a default is left out. Where only one side
      has a mapping, such as a decoder, it is not looked into.

    Raises:
      Refused: The arguments give no schedule.
    """
    built = {'': MODELS[function], **_built(function)}
    if 'network' in inspect.signature(MODELS[function]).parameters:  # instead of an encoder
        kinds = {arguments['network']['kind'] for arguments in (source, target)}
        if len(kinds) == 1:  # otherwise they have no defaults in common
            built['network'] = NETWORKS[kinds.pop()]
        return _differences(source, target, built)
    steps, fields = [], inspect.signature(schedule).parameters
    for arguments in (source, target):
        encoder = {**_defaults(Encoder), **arguments.get('encoder', {})}
        steps.append(schedule(**{field: encoder[field] for field in fields}))
    alike = [f'encoder.{field}' for field in fields] if steps[0] == steps[1] else []
    found = _differences(source, target, built)
    return {key: values for key, values in found.items() if key not in alike}


def _built(function: str) -> dict[str, Callable[..., Any]]:
    parameters = inspect.signature(MODELS[function]).parameters
    built = {**_BUILT_EVERYWHERE, **_BUILT[function]}
    return {key: owner for key, owner in built.items() if key.split('.')[0] in parameters}


def _differences(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    built: Mapping[str, Callable[..., Any]],
    key: str = '',
) -> dict[str, tuple[Any, Any]]:
    """The differences within the mappings that stand at a key; '' is all arguments."""
    defaults = _defaults(built[key]) if key in built else {}
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**defaults, **source, **target}:
        inner = f'{key}.{name}'.lstrip('.')
        ours, theirs = (_plain(side.get(name, defaults.get(name))) for side in (source, target))
        if name in NOT_COMPARED or (name in _WIDTHS and None in (ours, theirs)):
            continue
        if hasattr(ours, 'keys') and hasattr(theirs, 'keys'):
            found.update(_differences(ours, theirs, built, inner))
        elif ours != theirs:
            found[inner] = (ours, theirs)
    return found


def _defaults(owner: Callable[..., Any]) -> dict[str, Any]:
    """Name of an argument -> its default, of a function or of a module that is a dataclass."""
    made = {}
    if dataclasses.is_dataclass(owner):  # whose signature does not show what a factory makes
        fields = dataclasses.fields(owner)
        made = {x.name: x.default_factory() for x in fields if callable(x.default_factory)}
    parameters = inspect.signature(owner).parameters
    return {k: made.get(k, v.default) for k, v in parameters.items() if v.default is not v.empty}


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
