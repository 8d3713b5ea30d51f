"""What the config.json of transformers says of a Perceiver, as our arguments, and back.

The file lies beside the weights. Its keys are those of `PerceiverConfig`; what a class of
transformers hard-codes, such as 64 bands, stands in none of them, and in `RELEASED` here.

Source: transformers 5.24, `configuration_perceiver` and `modeling_perceiver`.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perceiver_jax.attention import CrossAttend, SelfAttend
from perceiver_jax.decoder import ClassQueryDecoder, QueryDecoder
from perceiver_jax.encoder import Encoder
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json
from perceiver_jax.inputs import FlowInputs, ImageInputs, TextInputs
from perceiver_jax.models import MODELS
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.trees import list_names

_KINDS = {
    'PerceiverForImageClassificationFourier': 'imagenet_fourier',
    'PerceiverForImageClassificationLearned': 'imagenet_learned',
    'PerceiverForImageClassificationConvProcessing': 'imagenet_conv',
    'PerceiverForOpticalFlow': 'optical_flow',
    'PerceiverForMaskedLM': 'mlm_bytes',
    'PerceiverForMultimodalAutoencoding': 'video_autoencoding',
}
_ARCHITECTURES = {kind: architecture for architecture, kind in _KINDS.items()}

# What a key is where the file does not have it.
_DEFAULTS: dict[str, Any] = dict(
    num_latents=256,
    d_latents=1280,
    d_model=768,
    num_blocks=1,
    num_self_attends_per_block=26,
    num_self_attention_heads=8,
    num_cross_attention_heads=8,
    qk_channels=None,
    v_channels=None,
    cross_attention_shape_for_attention='kv',
    self_attention_widening_factor=1,
    cross_attention_widening_factor=1,
    hidden_act='gelu',
    use_query_residual=True,
    vocab_size=262,
    max_position_embeddings=2048,
    image_size=56,
    train_size=[368, 496],
    num_frames=16,
    audio_samples_per_frame=1920,
    samples_per_patch=16,
    output_shape=[1, 16, 224, 224],
    output_num_channels=512,
    _label_trainable_num_channels=1024,
    num_labels=2,
    problem_type=None,
)

# Both definitions of GELU: ours, and that of the released weights, is the one by tanh.
_GELU_BY_TANH = 'gelu_pytorch_tanh'
_GELUS = ('gelu', 'gelu_python', 'gelu_new', 'gelu_fast', _GELU_BY_TANH)

_ACTIVATIONS = {
    None: 'softmax',
    'single_label_classification': 'softmax',
    'multi_label_classification': 'sigmoid',
    'regression': None,
}


class Described(NamedTuple):
    """What a config.json says of a model.

    Attributes:
      arguments: Keyword arguments of the function, but `is_training`.
      front_end: What inputs go through before, as arguments of `perceiver_jax.front_ends`.
      classes: Names of the labels, fewer than there are logits where the last have none; None: not
        known.
      activation: What makes probabilities of the logits: 'softmax', 'sigmoid' or None.
    """

    arguments: dict[str, Any]
    front_end: dict[str, Any]
    classes: list[str] | None
    activation: str | None


def find_config(path: Path) -> Path | None:
    """Returns the config.json of transformers that belongs to weights.

    Args:
      path: A file of weights in Hugging Face's format, or its folder.

    Returns:
      The file; None: there is none, or it is another program's, such as that of a run.

    Raises:
      Refused: It is not JSON.
    """
    file = (path if path.is_dir() else path.parent) / 'config.json'
    if not file.is_file():
        return None
    config = read_json(file, 'a config.json of transformers')
    return file if {'model_type', 'architectures'} & config.keys() else None


def read_config(file: Path) -> tuple[dict[str, Any], str | None]:
    """Reads a config.json of transformers, and which model it is of.

    Args:
      file: The file.

    Returns:
      Its content, and the kind of model, as `translation.recognise` returns it; None where the file
      does not name the class of the model.

    Raises:
      Refused: It is not JSON, or of a model that is none of the six released ones.
    """
    config = read_json(file, 'a config.json of transformers')
    model_type = config.get('model_type', 'perceiver')
    if model_type != 'perceiver':
        raise Refused(f"{file}: model_type is {model_type!r:.80}, expected 'perceiver'.")
    architectures = config.get('architectures')
    if architectures is None:
        return config, None
    if architectures == ['PerceiverForSequenceClassification']:
        raise Refused(
            f'{file}: architectures is {architectures}, a classifier of texts: bytes in, a class '
            'out. No model here is one, so that it cannot be loaded; of the models of texts only '
            'PerceiverForMaskedLM can.'
        )
    if not (
        isinstance(architectures, list)
        and len(architectures) == 1
        and architectures[0] in [*_KINDS]
    ):
        raise Refused(
            f'{file}: architectures is {architectures!r:.80}, expected one of {", ".join(_KINDS)}.'
        )
    return config, _KINDS[architectures[0]]


def from_config(config: Mapping[str, Any], kind: str, file: Any = 'config.json') -> Described:
    """Returns the arguments that a config.json stands for.

    They make the model as transformers computes it, up to what no argument can say: its GELU by erf
    where `hidden_act` is 'gelu' (ours is by tanh, as in DeepMind's code; small models differ by
    1e-4 then, and by rounding with 'gelu_new'), the padding of the convolutional class, which
    leaves 55x55 positions of 224x224 pixels (56x56 here), no mask for output queries in the
    language model, and flow in units of 20 pixels. What images go through before is not in the
    file.

    The class for learned positions has a query residual in its decoder, and DeepMind's code has
    not. Where a config has all sizes of the released model, its weights are DeepMind's, and it is
    read as DeepMind trained it; every other was trained in transformers, and has the residual.

    Args:
      config: Content of the file.
      kind: Kind of model, as `translation.recognise` returns it.
      file: The file, for messages.

    Returns:
      The arguments, front end, classes and activation. Where the config is that of the released
      model, the arguments equal those of `RELEASED`.

    Raises:
      Refused: A value is of another kind, or cannot be expressed; it names the key.
    """
    read = _Reader(config, file)
    released = RELEASED[kind]
    arguments, front_end = copy.deepcopy(released.arguments), copy.deepcopy(released.front_end)
    read.one_of('hidden_act', _GELUS)
    arguments['encoder'] = _encoder(read, arguments['encoder'])
    shape = read.one_of('cross_attention_shape_for_attention', ('kv', 'q'))
    as_queries = None  # channels of the decoder's queries, where keys are to be as wide
    if kind == 'optical_flow':
        size = read.counts('train_size', 2)
        arguments['inputs']['max_resolution'] = front_end['tile'] = size
        as_queries = arguments['inputs']['channels'] + _positions(2, arguments['inputs'])
    elif kind == 'mlm_bytes':
        channels, length = read.count('d_model'), read.count('max_position_embeddings')
        vocabulary = read.count('vocab_size')
        arguments['inputs'] = dict(vocabulary_size=vocabulary, channels=channels, max_length=length)
        arguments['decoder']['cross_attend']['v_channels'] = channels
        front_end['length'] = length
    elif kind == 'video_autoencoding':
        _read_video(read, arguments, front_end)
        queries = arguments['queries']
        positions = [_positions(3, queries['video']), _positions(1, queries['audio'])]
        as_queries = max(queries['label_channels'], *positions) + queries['min_padding']
    else:
        arguments['decoder']['query_channels'] = read.count('d_latents')
        if kind == 'imagenet_learned':
            front_end['size'] = read.count('image_size')
    classes, activation = None, None
    if 'num_classes' in arguments:
        names = read.labels()
        arguments['num_classes'] = len(names)
        classes = _without_defaults(names) or None
        activation = _ACTIVATIONS[read.one_of('problem_type', tuple(_ACTIVATIONS))]
    elif kind == 'mlm_bytes':
        activation = 'softmax'
    if shape == 'q':
        _set_unless_there(arguments['encoder'], 'qk_channels', read.count('d_latents'))
        if as_queries is not None:
            _set_unless_there(arguments['decoder'], 'qk_channels', as_queries)
    if kind == 'imagenet_learned' and (arguments, front_end) != released[1:3]:
        arguments['decoder']['cross_attend']['use_query_residual'] = True
    return Described(arguments, front_end, classes, activation)


def to_config(
    kind: str,
    arguments: Mapping[str, Any],
    front_end: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    activation: str | None = 'softmax',
) -> dict[str, Any]:
    """Returns the config.json with which transformers makes the same model: `from_config` undone.

    What only training needs, such as dropout, is left out.

    Args:
      kind: Kind of model, as `translation.recognise` returns it.
      arguments: Keyword arguments of the model's function.
      front_end: What its inputs go through before.
      classes: Names of the labels; None: not known.
      activation: What makes probabilities of the logits.

    Returns:
      Content of the file.

    Raises:
      Refused: An argument is none that the class of transformers can have; it names them all.
    """
    architecture, function = _ARCHITECTURES[kind], RELEASED[kind].function
    ours = dict(_flat(arguments, MODELS[function]))
    config: dict[str, Any] = dict(
        architectures=[architecture],
        model_type='perceiver',
        hidden_act=_GELU_BY_TANH,
        attention_probs_dropout_prob=0.0,
        num_latents=ours['encoder.num_latents'],
        d_latents=ours['encoder.latent_channels'],
        num_blocks=ours['encoder.num_blocks'],
        num_self_attends_per_block=ours['encoder.num_self_attends_per_block'],
        num_self_attention_heads=ours['encoder.self_attend.num_heads'],
        num_cross_attention_heads=ours['encoder.cross_attend.num_heads'],
        qk_channels=ours['encoder.self_attend.qk_channels'],
        v_channels=ours['encoder.self_attend.v_channels'],
        self_attention_widening_factor=ours['encoder.self_attend.widening_factor'],
        cross_attention_widening_factor=ours['encoder.cross_attend.widening_factor'],
        use_query_residual=ours['encoder.cross_attend.use_query_residual'],
    )
    for heads in ('num_self_attention_heads', 'num_cross_attention_heads'):
        if config['d_latents'] % config[heads]:
            raise Refused(
                f'transformers wants {heads} ({config[heads]}) to divide the channels of the '
                f'latents ({config["d_latents"]}).'
            )
    if kind == 'optical_flow':
        config['train_size'] = ours['inputs.max_resolution']
    elif kind == 'mlm_bytes':
        config['d_model'] = ours['inputs.channels']
        config['vocab_size'] = ours['inputs.vocabulary_size']
        config['max_position_embeddings'] = ours['inputs.max_length']
    elif kind == 'video_autoencoding':
        frames, rows, _ = ours['inputs.video.max_resolution']
        samples = ours['inputs.audio.max_resolution'][0]
        config.update(
            num_frames=frames,
            image_size=rows,
            audio_samples_per_frame=max(1, samples // frames),
            samples_per_patch=ours['inputs.audio.samples_per_patch'],
            output_shape=[1, front_end['num_frames'], front_end['size'], front_end['size']],
            output_num_channels=ours['decoder.output_channels'],
            _label_trainable_num_channels=ours['queries.label_channels'],
        )
    else:
        config['image_size'] = front_end['size']
        if len(front_end['mean']) != 3:
            raise Refused(
                f'images of {len(front_end["mean"])} channels (front_end.mean), and those of '
                f'{architecture} have 3.'
            )
    if 'num_classes' in ours:
        names = list(classes or [])
        names += [_default_label(i) for i in range(len(names), ours['num_classes'])]
        config['id2label'] = {str(i): name for i, name in enumerate(names)}
        config['label2id'] = {name: i for i, name in enumerate(names)}
        problems = {activation: problem for problem, activation in _ACTIVATIONS.items()}
        config['problem_type'] = problems[activation]
    theirs = dict(_flat(from_config(config, kind).arguments, MODELS[function]))
    if kind == 'imagenet_learned' and not ours['decoder.cross_attend.use_query_residual']:
        theirs['decoder.cross_attend.use_query_residual'] = True  # of the released sizes, too
    different = [
        f'{key} is {ours.get(key)!r:.60}, not {theirs.get(key)!r:.60}'
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        raise Refused(f'not what {architecture} of transformers is: {list_names(different)}.')
    return config


def differing_keys(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which another config.json means another model.

    Args:
      config: What `to_config` returned.
      other: Content of the other file.

    Returns:
      Keys of `config`.
    """

    def meaning(content: Mapping[str, Any], key: str) -> Any:
        value = content.get(key, _DEFAULTS.get(key))
        if key == 'hidden_act':
            return 'gelu' if value in _GELUS else value
        if key == 'id2label':
            return _Reader(content, 'config.json').labels()
        if key == 'problem_type':
            return _ACTIVATIONS.get(value, value) if isinstance(value, str | None) else value
        return value

    unread = {'label2id', 'attention_probs_dropout_prob'}
    if (
        config['architectures'] != [_ARCHITECTURES['imagenet_learned']]
        and 'output_shape' not in config
    ):
        unread.add('image_size')  # the other classes take images of any size
    return [
        key for key in config if key not in unread and meaning(config, key) != meaning(other, key)
    ]


class _Reader:
    """Values of a config.json, each checked as it is read."""

    def __init__(self, config: Mapping[str, Any], file: Any):
        self._config, self._file = config, file

    def value(self, key: str) -> Any:
        return self._config.get(key, _DEFAULTS[key])

    def count(self, key: str) -> int:
        value = self.value(key)
        if not _is_count(value):
            raise self.refused(key, 'a positive integer')
        return value

    def count_or_none(self, key: str) -> int | None:
        return None if self.value(key) is None else self.count(key)

    def counts(self, key: str, length: int) -> list[int]:
        value = self.value(key)
        if not (isinstance(value, list) and len(value) == length and all(map(_is_count, value))):
            raise self.refused(key, f'{length} positive integers')
        return list(value)

    def one_of(self, key: str, known: Sequence[Any]) -> Any:
        value = self.value(key)
        if not (isinstance(value, str | None) and value in known):
            raise self.refused(key, f'one of {", ".join(map(str, known))}')
        return value

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.refused(key, 'true or false')
        return value

    def labels(self) -> list[str]:
        """Returns a name for each logit, 'LABEL_3' where it has none."""
        labels = self._config.get('id2label')
        if labels is None:
            return [_default_label(i) for i in range(self.count('num_labels'))]
        numbers = [str(i) for i in range(len(labels))] if isinstance(labels, dict) else []
        if not numbers or set(labels) != set(numbers):
            raise self.refused('id2label', "a name for each of '0', '1', '2' and so on", None)
        names = [labels[number] for number in numbers]
        if not all(isinstance(name, str) for name in names):
            raise self.refused('id2label', 'names', None)
        return names

    def refused(self, key: str, expected: str, default: Any = None) -> Refused:
        value = self._config.get(key, _DEFAULTS.get(key, default))
        return Refused(f'{self._file}: {key} is {value!r:.80}, expected {expected}.')


def _encoder(read: _Reader, released: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of `Encoder`."""
    channels = dict(
        qk_channels=read.count_or_none('qk_channels'), v_channels=read.count_or_none('v_channels')
    )
    cross_attend = _fields(
        CrossAttend,
        released.get('cross_attend', {}),
        num_heads=read.count('num_cross_attention_heads'),
        widening_factor=read.count('cross_attention_widening_factor'),
        use_query_residual=read.flag('use_query_residual'),
        **channels,
    )
    self_attend = _fields(
        SelfAttend,
        released['self_attend'],
        num_heads=read.count('num_self_attention_heads'),
        widening_factor=read.count('self_attention_widening_factor'),
        **channels,
    )
    encoder = dict(
        released,
        num_latents=read.count('num_latents'),
        latent_channels=read.count('d_latents'),
        num_blocks=read.count('num_blocks'),
        num_self_attends_per_block=read.count('num_self_attends_per_block'),
        self_attend=self_attend,
    )
    return {**encoder, 'cross_attend': cross_attend} if cross_attend else encoder


def _read_video(read: _Reader, arguments: dict[str, Any], front_end: dict[str, Any]) -> None:
    """Sets what is of the video model alone."""
    frames, size = read.count('num_frames'), read.count('image_size')
    samples = read.count('audio_samples_per_frame')
    _, output_frames, height, width = read.counts('output_shape', 4)
    if output_frames != frames or height != width:
        raise read.refused('output_shape', f'a batch, num_frames ({frames}), and a square')
    for part in (arguments['inputs'], arguments['queries']):
        part['video']['max_resolution'] = [frames, size, size]
        part['audio']['max_resolution'] = [frames * samples]
    arguments['inputs']['audio']['samples_per_patch'] = read.count('samples_per_patch')
    arguments['queries']['label_channels'] = read.count('_label_trainable_num_channels')
    arguments['decoder']['output_channels'] = read.count('output_num_channels')
    # The file has samples of a frame alone, and neither rate.
    sample_rate = samples * front_end['frames_per_second']
    front_end.update(num_frames=frames, size=height, sample_rate=sample_rate)


def _fields(module: type, released: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Returns fields that are the released ones or not the defaults of the module."""
    defaults = _defaults(module)
    return {
        name: value
        for name, value in {**released, **values}.items()
        if value != defaults[name] or (name in released and value is not None)
    }


def _set_unless_there(part: dict[str, Any], field: str, value: int) -> None:
    part['cross_attend'] = {field: value, **part.get('cross_attend', {})}


def _positions(axes: int, fields: Mapping[str, Any]) -> int:
    """Channels of Fourier positions."""
    return axes * (2 * fields['num_bands'] + 1)


def _default_label(number: int) -> str:
    return f'LABEL_{number}'


def _without_defaults(names: Sequence[str]) -> list[str]:
    """Returns the names up to the last that is not transformers' own for a class without one."""
    named = [i for i, name in enumerate(names) if name != _default_label(i)]
    return list(names[: max(named) + 1]) if named else []


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# Which fields of what hold the fields of what, by the names of the owners.
_DECODER = dict(cross_attend=CrossAttend)
_PARTS: dict[str, Mapping[str, Callable]] = {
    'image_classifier': dict(inputs=ImageInputs, encoder=Encoder, decoder=ClassQueryDecoder),
    'optical_flow': dict(inputs=FlowInputs, encoder=Encoder, decoder=QueryDecoder),
    'masked_language_model': dict(inputs=TextInputs, encoder=Encoder, decoder=QueryDecoder),
    'video_autoencoder': dict(encoder=Encoder, decoder=QueryDecoder),
    'Encoder': dict(cross_attend=CrossAttend, self_attend=SelfAttend),
    'ClassQueryDecoder': _DECODER,
    'QueryDecoder': _DECODER,
}
# Arguments that play no part in what a model with its weights computes in evaluation, but for
# rounding.
_NOT_OF_THE_MODEL = re.compile(
    'dtype|implementation|batch_norm_axis|chunk_size|dropout_rate|.*_init_std|zero_init_output|scan'
    '|remat_.*|name'
)


def _flat(
    fields: Mapping[str, Any], owner: Callable | None, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
    """Yields arguments by dotted names, defaults included, that play a part in the outputs."""
    fields = {**(_defaults(owner) if owner else {}), **fields}
    if fields.get('num_cross_attends') == 1:
        fields.pop('cross_attend_placement'), fields.pop('share_cross_attends')
    if fields.get('num_blocks') == 1:
        fields.pop('share_blocks')
    parts = _PARTS.get(owner.__name__, {}) if owner else {}
    for name, value in fields.items():
        if name in parts and value is not None:
            yield from _flat(value, parts[name], f'{prefix}{name}.')
        elif isinstance(value, Mapping):
            yield from _flat(value, None, f'{prefix}{name}.')
        elif not _NOT_OF_THE_MODEL.fullmatch(name):
            yield f'{prefix}{name}', list(value) if isinstance(value, tuple) else value


def _defaults(owner: Callable) -> dict[str, Any]:
    parts = _PARTS.get(owner.__name__, {})
    return {
        name: {}
        if name in parts and parts[name] in (CrossAttend, SelfAttend)
        else parameter.default
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.default is not parameter.empty
    }
