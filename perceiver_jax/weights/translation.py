"""Parameters under DeepMind's and Hugging Face's names and in their layouts, and under ours.

One table has a row for each parameter of the six released models, with its three names.
`from_deepmind`, `to_huggingface` and the others translate by it; there and back changes no bit.
How the files are read and written stands in `foreign_files`.

Source: DeepMind's release of Perceiver IO, and Hugging Face's port of it in transformers.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.weights.trees import Arrays, Tree, flatten, list_names, nest, widen

Naming = Literal['ours', 'deepmind', 'huggingface']  # whose names and layouts: a column below


class _Row(NamedTuple):
    """One parameter under its three names; `*` stands for a self-attend, see `_SELF_ATTENDS`."""

    ours: str  # 'module:parameter'
    deepmind: str  # 'module:parameter'
    huggingface: str | None  # None: Hugging Face's models do not have it
    layout: str = 'same'  # see `_LAYOUTS`
    tree: str = 'params'  # or 'state'


def _linear(ours: str, deepmind: str, huggingface: str, layout: str = 'matrix') -> list[_Row]:
    return [
        _Row(f'{ours}:w', f'{deepmind}:w', f'{huggingface}.weight', layout),
        _Row(f'{ours}:b', f'{deepmind}:b', f'{huggingface}.bias'),
    ]


def _norm(ours: str, deepmind: str, huggingface: str, layout: str = 'same') -> list[_Row]:
    return [
        _Row(f'{ours}:scale', f'{deepmind}:scale', f'{huggingface}.weight', layout),
        _Row(f'{ours}:offset', f'{deepmind}:offset', f'{huggingface}.bias', layout),
    ]


# The parts of a cross-attend or self-attend: our name, DeepMind's and Hugging Face's.
_CROSS_ATTEND_NORMS = [
    ('norm_queries', 'layer_norm', 'attention.self.layernorm1'),
    ('norm_inputs', 'layer_norm_1', 'attention.self.layernorm2'),
    ('norm_mlp', 'layer_norm_2', 'layernorm'),
]
_SELF_ATTEND_NORMS = [
    ('norm_attention', 'layer_norm', 'attention.self.layernorm1'),
    ('norm_mlp', 'layer_norm_1', 'layernorm'),
]
_LINEARS = [
    ('attention/query', 'attention/linear', 'attention.self.query'),
    ('attention/key', 'attention/linear_1', 'attention.self.key'),
    ('attention/value', 'attention/linear_2', 'attention.self.value'),
    ('attention/output', 'attention/linear_3', 'attention.output.dense'),
    ('mlp/hidden', 'mlp/linear', 'mlp.dense1'),
    ('mlp/output', 'mlp/linear_1', 'mlp.dense2'),
]


def _attend(
    ours: str, deepmind: str, huggingface: str, norms: list[tuple[str, str, str]]
) -> list[_Row]:
    rows = []
    for our_part, their_part, hub_part in norms:
        rows += _norm(f'{ours}/{our_part}', f'{deepmind}/{their_part}', f'{huggingface}.{hub_part}')
    for our_part, their_part, hub_part in _LINEARS:
        rows += _linear(
            f'{ours}/{our_part}', f'{deepmind}/{their_part}', f'{huggingface}.{hub_part}'
        )
    return rows


def _cross_attend(ours: str, deepmind: str, huggingface: str) -> list[_Row]:
    return _attend(ours, deepmind, huggingface, _CROSS_ATTEND_NORMS)


def _self_attend(ours: str, deepmind: str, huggingface: str) -> list[_Row]:
    return _attend(ours, deepmind, huggingface, _SELF_ATTEND_NORMS)


def _encoder(deepmind: str) -> list[_Row]:
    hub, latents = 'perceiver.encoder', f'{deepmind}/~/trainable_position_encoding:pos_embs'
    return [
        # `_closest` finds the latents as the first row.
        _Row('encoder:latents', latents, 'perceiver.embeddings.latents'),
        *_cross_attend(
            'encoder/cross_attend_1', f'{deepmind}/~/cross_attention', f'{hub}.cross_attention'
        ),
        *_self_attend('encoder/block_1/*', f'{deepmind}/~/*', f'{hub}.*'),
    ]


_INPUTS = 'perceiver.input_preprocessor'
_DECODER = 'perceiver.decoder.decoder'
_CLASS_DECODER = 'classification_decoder/~/basic_decoder'
_POSITIONS = 'image_preprocessor/~_build_network_inputs'
_CONV = 'image_preprocessor/~/conv2_d_downsample/~'
_BATCH_NORM = 'inputs/conv7x7/batch_norm'

_IMAGENET = [
    *_encoder('perceiver_encoder'),
    _Row(
        'decoder:query',
        f'{_CLASS_DECODER}/~/trainable_position_encoding:pos_embs',
        f'{_DECODER}.output_position_encodings.position_embeddings',
    ),
    *_cross_attend(
        'decoder/query_decoder/cross_attend',
        f'{_CLASS_DECODER}/cross_attention',
        f'{_DECODER}.decoding_cross_attention',
    ),
    *_linear('decoder/query_decoder/output', f'{_CLASS_DECODER}/output', f'{_DECODER}.final_layer'),
]


def _average(average: str, deepmind: str, huggingface: str) -> list[_Row]:
    """A running average of batch normalisation: three arrays in Haiku, the first in torch."""
    theirs, hub = f'{_CONV}/batchnorm/~/{deepmind}', f'{_INPUTS}.convnet.batchnorm'
    # Haiku has a counter for each average, and both always count alike; we and torch have one.
    counter = f'{hub}.num_batches_tracked' if average == 'mean' else None
    return [
        _Row(
            f'{_BATCH_NORM}:{average}',
            f'{theirs}:average',
            f'{hub}.{huggingface}',
            'channels',
            'state',
        ),
        _Row(f'{_BATCH_NORM}:{average}_hidden', f'{theirs}:hidden', None, 'channels', 'state'),
        _Row(f'{_BATCH_NORM}:counter', f'{theirs}:counter', counter, 'same', 'state'),
    ]


def _modality(ours: str, theirs: str, postprocessor: str) -> list[_Row]:
    """The parameters of one modality of the video model: three vectors and the output layer."""
    return [
        _Row(
            f'inputs:{ours}_padding',
            f'multimodal_preprocessor/{theirs}_padding:pos_embs',
            f'{_INPUTS}.padding.{theirs}',
            'row',
        ),
        _Row(
            f'inputs:{ours}_mask_token',
            f'multimodal_preprocessor/{theirs}_mask_token:pos_embs',
            f'{_INPUTS}.mask.{theirs}',
            'row',
        ),
        _Row(
            f'output_queries:{ours}_padding',
            f'multimodal_decoder/~decoder_query/{theirs}_padding:pos_embs',
            f'perceiver.decoder.padding.{theirs}',
            'row',
        ),
        *_linear(
            f'{ours}_output',
            f'{postprocessor}_postprocessor/linear',
            f'perceiver.output_postprocessor.modalities.{theirs}.classifier',
        ),
    ]


_TABLE = {
    'imagenet_fourier': _IMAGENET,
    'imagenet_learned': [
        *_IMAGENET,
        *_linear(
            'inputs/conv1x1', 'image_preprocessor/~/conv2_d', f'{_INPUTS}.convnet_1x1', 'conv1x1'
        ),
        _Row(
            'inputs/position_encoding:positions',
            f'{_POSITIONS}/trainable_position_encoding:pos_embs',
            f'{_INPUTS}.position_embeddings.position_embeddings',
        ),
        *_linear(
            'inputs/position_encoding/projection',
            f'{_POSITIONS}/position_encoding_projector/linear',
            f'{_INPUTS}.positions_projection',
        ),
    ],
    'imagenet_conv': [
        *_IMAGENET,
        _Row('inputs/conv7x7:w', f'{_CONV}/conv:w', f'{_INPUTS}.convnet.conv.weight', 'conv7x7'),
        *_norm(_BATCH_NORM, f'{_CONV}/batchnorm', f'{_INPUTS}.convnet.batchnorm', 'channels'),
        *_average('mean', 'mean_ema', 'running_mean'),
        *_average('variance', 'var_ema', 'running_var'),
    ],
    'optical_flow': [
        *_encoder('perceiver_encoder'),
        *_linear(
            'inputs/projection',
            'image_preprocessor/patches_linear',
            f'{_INPUTS}.conv_after_patches',
        ),
        *_cross_attend(
            'decoder/cross_attend',
            'flow_decoder/~/basic_decoder/cross_attention',
            f'{_DECODER}.decoding_cross_attention',
        ),
        *_linear(
            'decoder/output', 'flow_decoder/~/basic_decoder/output', f'{_DECODER}.final_layer'
        ),
    ],
    'mlm_bytes': [
        *_encoder('perceiver_encoder'),
        _Row('inputs:embeddings', 'embed:embeddings', f'{_INPUTS}.embeddings.weight'),
        _Row(
            'inputs/position_encoding:positions',
            'trainable_position_encoding:pos_embs',
            f'{_INPUTS}.position_embeddings.weight',
        ),
        _Row(
            'output_queries:positions',
            'basic_decoder/~/trainable_position_encoding:pos_embs',
            'perceiver.decoder.output_position_encodings.position_embeddings',
        ),
        *_cross_attend(
            'decoder/cross_attend',
            'basic_decoder/cross_attention',
            'perceiver.decoder.decoding_cross_attention',
        ),
        _Row('output:b', 'embedding_decoder:bias', 'embedding_decoder.bias'),
    ],
    'video_autoencoding': [
        *_encoder('encoder'),
        *_modality('audio', 'audio', 'audio'),
        *_modality('video', 'image', 'projection'),
        *_modality('label', 'label', 'classification'),
        _Row(
            'label_query:positions',
            f'{_CLASS_DECODER}/~/trainable_position_encoding:pos_embs',
            'perceiver.decoder.modalities.label.decoder.output_position_encodings'
            '.position_embeddings',
        ),
        *_cross_attend(
            'decoder/cross_attend',
            'multimodal_decoder/~/basic_decoder/cross_attention',
            f'{_DECODER}.decoding_cross_attention',
        ),
        *_linear(
            'decoder/output', 'multimodal_decoder/~/basic_decoder/output', f'{_DECODER}.final_layer'
        ),
    ],
}

# How an array of a layout differs from ours in a naming: the number of axes of size 1 that stand
# in front of our axes, and the order that the axes are in then (None: unchanged). A layout and
# naming that is not listed is as ours.
_LAYOUTS: dict[tuple[str, Naming], tuple[int, tuple[int, ...] | None]] = {
    ('matrix', 'huggingface'): (0, (1, 0)),
    ('conv1x1', 'deepmind'): (2, None),
    ('conv1x1', 'huggingface'): (2, (3, 2, 0, 1)),
    # The published file is [out, in, width, height], by a slip of its converter.
    ('conv7x7 hub', 'huggingface'): (0, (3, 2, 1, 0)),
    ('conv7x7 transformers', 'huggingface'): (0, (3, 2, 0, 1)),
    ('channels', 'deepmind'): (3, None),
    ('row', 'deepmind'): (1, None),
    ('row', 'huggingface'): (1, None),
}

# What stands for the `*` of a row: `_self_attend_name` writes it, these patterns find it.
_SELF_ATTENDS: dict[Naming, str] = {
    'ours': r'(?<=/)self_attend_([1-9]\d{0,8})(?=/)',
    'deepmind': r'(?<=/)self_attention(?:_([1-9]\d{0,8}))?(?=/)',
    'huggingface': r'(?<=\.)self_attends\.(0|[1-9]\d{0,8})(?=\.)',
}


def recognise(names: Iterable[str], naming: Naming | None = None) -> str:
    """Returns the kind of model that parameters belong to, by their names alone.

    Args:
      names: Names of parameters: 'module:parameter' as we or DeepMind name them, or Hugging Face's.
      naming: Whose names these are: 'ours', 'deepmind' or 'huggingface'; None tries all three.

    Returns:
      'imagenet_fourier', 'imagenet_learned', 'imagenet_conv', 'optical_flow', 'mlm_bytes' or
      'video_autoencoding': the kind that has most of these names, and fewest others.

    Raises:
      Refused: The latents, which every Perceiver has, are not among the names.
    """
    names = list(names)
    namings: tuple[Naming, ...] = ('ours', 'deepmind', 'huggingface')
    for candidate in (naming,) if naming else namings:
        kind = _closest(_prefixed(names) if candidate == 'huggingface' else names, candidate)
        if kind is not None:
            return kind
    raise Refused(f'These parameters are of no Perceiver that is known: {list_names(names)}.')


def our_name(kind: str, module: str, parameter: str) -> tuple[str, str]:
    """Returns our name of a parameter or state of one of DeepMind's models.

    Args:
      kind: Kind of model, as `recognise` returns it.
      module: Haiku module name in DeepMind's release, such as
        'perceiver_encoder/~/cross_attention/attention/linear'.
      parameter: Name within the module, such as 'w'.

    Returns:
      Module and parameter name here, such as ('encoder/cross_attend_1/attention/query', 'w').

    Raises:
      Refused: There is no such kind, or the model has no such parameter.
    """
    name = f'{module}:{parameter}'
    key, number = _split(name, 'deepmind')
    rows = _rows(kind, 'deepmind')
    if key not in rows:
        raise Refused(f"{name!r} is no parameter of DeepMind's {kind}.")
    our_module, our_parameter = _fill_in(rows[key][0].ours, number, 'ours').split(':')
    return our_module, our_parameter


def from_deepmind(params: Tree, state: Tree | None = None) -> tuple[Arrays, Arrays]:
    """Translates DeepMind's parameters and state to our names and layouts.

    Args:
      params: Parameters of one of the six released models, of any size.
      state: State of that model; None where it has none. Only the convolutional model has one.

    Returns:
      Parameters and state for our function of that model: 1x1 convolutions as matrices
      `[in, out]`, batch normalisation and paddings as vectors. 16-bit floats become float32.

    Raises:
      Refused: Names or layouts do not belong to the model.
    """
    our_params, our_state = _translate(flatten(params, state), 'deepmind', 'ours')
    return nest(our_params), nest(our_state)


def to_deepmind(params: Tree, state: Tree | None = None) -> tuple[Arrays, Arrays]:
    """Translates our parameters and state to DeepMind's terms: the inverse of `from_deepmind`.

    Args:
      params: Parameters of one of the six models, under our names.
      state: State of that model; None where it has none.

    Returns:
      Parameters and state under DeepMind's names and in DeepMind's layouts.

    Raises:
      Refused: The model is none of those that were released, or a layout does not belong to it.
    """
    their_params, their_state = _translate(flatten(params, state), 'ours', 'deepmind')
    return nest(their_params), nest(their_state)


def from_huggingface(
    tensors: Mapping[str, Any], *, conv_kernel: str = 'hub'
) -> tuple[Arrays, Arrays]:
    """Translates Hugging Face's tensors to our names and layouts.

    Batch normalisation there lacks the running averages before the correction for their start at
    zero, which only further training needs: these follow from the averages and the counter.

    Args:
      tensors: Tensors by name of one of the six published models, of any size; either all names
        have the prefix 'perceiver.' or none has.
      conv_kernel: Layout of the 7x7 kernel, where there is one: 'hub' as in the published file,
        with height and width swapped, or 'transformers' for one that was trained there.

    Returns:
      Parameters and state for our function of that model. 16-bit floats become float32.

    Raises:
      Refused: Names or layouts do not belong to the model, or `conv_kernel` is unknown.
    """
    prefixed = dict(zip(_prefixed(tensors), tensors.values(), strict=True))
    flat_params, flat_state = _translate(prefixed, 'huggingface', 'ours', conv_kernel)
    params, state = nest(flat_params), nest(flat_state)
    averages = state.get(_BATCH_NORM, {})
    if 'counter' in averages:
        # The published file has a counter of 0, for averages that must be of one batch at least.
        averages['counter'] = np.maximum(averages['counter'], 1).astype(np.int32)
        for name in averages.keys() & {'mean', 'variance'}:
            correction = np.float32(1 - 0.9 ** averages['counter'])
            averages[f'{name}_hidden'] = averages[name] * correction
    return params, state


def to_huggingface(
    params: Tree, state: Tree | None = None, *, conv_kernel: str = 'hub'
) -> dict[str, np.ndarray]:
    """Translates our parameters and state to Hugging Face's: the inverse of `from_huggingface`.

    Args:
      params: Parameters of one of the six models, under our names.
      state: State of that model; None where it has none.
      conv_kernel: Layout of the 7x7 kernel, where there is one: 'hub' as in the published file,
        with height and width swapped, or 'transformers' as transformers uses it.

    Returns:
      Tensors by name, with the prefix 'perceiver.'.

    Raises:
      Refused: The model is none of those that were released, a layout does not belong to it, or
        `conv_kernel` is unknown.
    """
    tensors, state_tensors = _translate(flatten(params, state), 'ours', 'huggingface', conv_kernel)
    for name, array in state_tensors.items():
        tensors[name] = (
            array.astype(np.int64) if array.dtype == np.int32 else array
        )  # as torch counts
    return tensors


def _translate(
    arrays: Mapping[str, Any], source: Naming, target: Naming, conv_kernel: str = 'hub'
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns parameters and state by their names in `target`, of arrays named as in `source`."""
    if conv_kernel not in ('hub', 'transformers'):
        raise Refused(f"conv_kernel must be 'hub' or 'transformers', not {conv_kernel!r}.")
    kind = recognise(arrays, source)
    rows = _rows(kind, source)
    _check_names(arrays, kind, source)
    trees: dict[str, dict[str, np.ndarray]] = {'params': {}, 'state': {}}
    for name in arrays:
        key, number = _split(name, source)
        array = widen(np.asarray(arrays[name]))
        for row in rows[key]:
            pattern = getattr(row, target)
            if pattern is None:
                continue
            layout = f'conv7x7 {conv_kernel}' if row.layout == 'conv7x7' else row.layout
            try:
                translated = _lay_out(array, layout, source, target)
            except ValueError:  # NumPy's: too few axes, too many, or not of size 1
                raise Refused(
                    f'{name} is {array.shape}, which is no {row.layout} of {source}.'
                ) from None
            tree, new_name = trees[row.tree], _fill_in(pattern, number, target)
            if new_name not in tree:
                tree[new_name] = translated
            elif not np.array_equal(tree[new_name], translated):
                raise Refused(
                    f'{name} is {translated}, but another {new_name} is {tree[new_name]}.'
                )
    return trees['params'], trees['state']


def _check_names(names: Collection[str], kind: str, source: Naming) -> None:
    """Refuses names that the kind of model does not have and, of our names, a lack of some."""
    rows = _rows(kind, source)
    unknown = [name for name in names if _split(name, source)[0] not in rows]
    if unknown:
        raise Refused(
            f'{len(unknown)} of these parameters do not belong to {kind}, which they are most '
            f'like: {list_names(unknown)}.'
        )
    if source == 'ours':
        # A model that can be built here need not be one that was released.
        needed = {row.ours for row in _TABLE[kind] if row.tree == 'params' and '*' not in row.ours}
        missing = sorted(needed - set(names))
        if missing:
            raise Refused(
                f'This is none of the models that were released: most like {kind}, it lacks '
                f'{list_names(missing)}.'
            )


def _lay_out(array: np.ndarray, layout: str, source: Naming, target: Naming) -> np.ndarray:
    ones, axes = _LAYOUTS.get((layout, source), (0, None))
    if axes is not None:
        array = array.transpose(np.argsort(axes))
    array = array.squeeze(tuple(range(ones)))
    ones, axes = _LAYOUTS.get((layout, target), (0, None))
    array = array[(None,) * ones]
    return array if axes is None else array.transpose(axes)


def _closest(names: Iterable[str], naming: Naming) -> str | None:
    """Returns the kind that has the same latents, most of the names, and fewest others."""
    keys = {_split(name, naming)[0] for name in names}

    def likeness(kind: str) -> tuple[int, int]:
        known = _rows(kind, naming).keys()
        return len(keys & known), -len(known - keys)

    kinds = []
    for kind in _TABLE:
        latents = next(iter(_rows(kind, naming)))
        if latents in keys:
            kinds.append(kind)
    return max(kinds, key=likeness, default=None)


@functools.cache
def _rows(kind: str, naming: Naming) -> dict[tuple[str, ...], list[_Row]]:
    """Returns the table of a kind of model by the names in one column, each split at the `*`."""
    if kind not in _TABLE:
        raise Refused(f'kind must be one of {list(_TABLE)}, not {kind!r}.')
    rows: dict[tuple[str, ...], list[_Row]] = {}
    for row in _TABLE[kind]:
        name = getattr(row, naming)
        if name is not None:
            rows.setdefault(tuple(name.split('*')), []).append(row)
    return rows


def _split(name: str, naming: Naming) -> tuple[tuple[str, ...], int | None]:
    """Splits a name at its self-attend, and returns that one's number from 0; None without one."""
    found = re.search(_SELF_ATTENDS[naming], name)
    if found is None:
        return (name,), None
    number = int(found[1] or 0)
    if naming == 'ours':
        number -= 1
    return (name[: found.start()], name[found.end() :]), number


def _fill_in(name: str, number: int | None, naming: Naming) -> str:
    """Returns a name of the table with a self-attend in the place of the `*`."""
    return name if number is None else name.replace('*', _self_attend_name(number, naming))


def _self_attend_name(number: int, naming: Naming) -> str:
    """Returns the name of a self-attend, given its number from 0."""
    if naming == 'ours':
        return f'self_attend_{number + 1}'
    if naming == 'huggingface':
        return f'self_attends.{number}'
    return f'self_attention_{number}' if number else 'self_attention'


def _prefixed(names: Iterable[str]) -> list[str]:
    """Returns Hugging Face's names with their prefix, which a bare PerceiverModel does not save."""
    names = list(names)
    if any(name.startswith('perceiver.') for name in names):
        return names
    return [n if n.startswith('embedding_decoder.') else f'perceiver.{n}' for n in names]
