"""DeepMind's and Hugging Face's weights as ours, and back.

The only file that knows foreign parameter names, layouts and file formats. Files are read and
written in foreign terms (`read_deepmind`, `write_huggingface`, ...); `from_deepmind`,
`to_huggingface` and the others translate, by one table. There and back changes no bit.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from perceiver_jax.errors import Refused

Tree = Mapping[str, Mapping[str, Any]]  # Haiku's: module name -> parameter name -> array
Arrays = dict[str, dict[str, np.ndarray]]  # the same, of NumPy's arrays


class _Row(NamedTuple):
    """One parameter as all three name it; `*` is the place of a self-attend, see `_PLACES`."""

    ours: str  # 'module:parameter'
    deepmind: str  # likewise
    huggingface: str | None
    layout: str = 'same'
    tree: str = 'params'


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


_ATTENTION_AND_MLP = [
    ('attention/query', 'attention/linear', 'attention.self.query'),
    ('attention/key', 'attention/linear_1', 'attention.self.key'),
    ('attention/value', 'attention/linear_2', 'attention.self.value'),
    ('attention/output', 'attention/linear_3', 'attention.output.dense'),
    ('mlp/hidden', 'mlp/linear', 'mlp.dense1'),
    ('mlp/output', 'mlp/linear_1', 'mlp.dense2'),
]
_CROSS_ATTEND_NORMS = [
    ('norm_queries', 'layer_norm', 'attention.self.layernorm1'),
    ('norm_inputs', 'layer_norm_1', 'attention.self.layernorm2'),
    ('norm_mlp', 'layer_norm_2', 'layernorm'),
]
_SELF_ATTEND_NORMS = [
    ('norm_attention', 'layer_norm', 'attention.self.layernorm1'),
    ('norm_mlp', 'layer_norm_1', 'layernorm'),
]


def _attend(ours: str, deepmind: str, huggingface: str, norms: list) -> list[_Row]:
    layers = [(_norm, *names) for names in norms]
    layers += [(_linear, *names) for names in _ATTENTION_AND_MLP]
    return [
        row
        for rows, *names in layers
        for row in rows(f'{ours}/{names[0]}', f'{deepmind}/{names[1]}', f'{huggingface}.{names[2]}')
    ]


def _cross_attend(ours: str, deepmind: str, huggingface: str) -> list[_Row]:
    return _attend(ours, deepmind, huggingface, _CROSS_ATTEND_NORMS)


def _encoder(deepmind: str) -> list[_Row]:
    hub, latents = 'perceiver.encoder', f'{deepmind}/~/trainable_position_encoding:pos_embs'
    return [
        _Row('encoder:latents', latents, 'perceiver.embeddings.latents'),
        *_cross_attend(
            'encoder/cross_attend_1', f'{deepmind}/~/cross_attention', f'{hub}.cross_attention'
        ),
        *_attend('encoder/block_1/*', f'{deepmind}/~/*', f'{hub}.*', _SELF_ATTEND_NORMS),
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


def _average(ours: str, deepmind: str, huggingface: str) -> list[_Row]:
    """A running average of batch normalisation, of which Hugging Face keeps one part of three."""
    ours, theirs = f'{_BATCH_NORM}:{ours}', f'{_CONV}/batchnorm/~/{deepmind}'
    hub = f'{_INPUTS}.convnet.batchnorm'
    # Haiku counts for either average; both always count alike, and we and torch count once.
    counter = f'{hub}.num_batches_tracked' if huggingface == 'running_mean' else None
    return [
        _Row(ours, f'{theirs}:average', f'{hub}.{huggingface}', 'channels', 'state'),
        _Row(f'{ours}_hidden', f'{theirs}:hidden', None, 'channels', 'state'),
        _Row(f'{_BATCH_NORM}:counter', f'{theirs}:counter', counter, 'same', 'state'),
    ]


def _modality(ours: str, theirs: str, postprocessor: str) -> list[_Row]:
    """What the video model has of one modality."""

    def vector(ours: str, deepmind: str, huggingface: str) -> _Row:
        return _Row(ours, f'{deepmind}:pos_embs', huggingface, 'row')

    return [
        vector(
            f'inputs:{ours}_padding',
            f'multimodal_preprocessor/{theirs}_padding',
            f'{_INPUTS}.padding.{theirs}',
        ),
        vector(
            f'inputs:{ours}_mask_token',
            f'multimodal_preprocessor/{theirs}_mask_token',
            f'{_INPUTS}.mask.{theirs}',
        ),
        vector(
            f'output_queries:{ours}_padding',
            f'multimodal_decoder/~decoder_query/{theirs}_padding',
            f'perceiver.decoder.padding.{theirs}',
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

# How an array lies elsewhere: with how many axes of size 1 in front of ours, and then with its
# axes in which order (None: as they are). What is not here lies as ours does.
_LAYOUTS = {
    ('matrix', 'huggingface'): (0, (1, 0)),
    ('conv1x1', 'deepmind'): (2, None),
    ('conv1x1', 'huggingface'): (2, (3, 2, 0, 1)),
    ('hub', 'huggingface'): (0, (3, 2, 1, 0)),  # [out, in, width, height]: the converter's slip
    ('transformers', 'huggingface'): (0, (3, 2, 0, 1)),
    ('channels', 'deepmind'): (3, None),
    ('row', 'deepmind'): (1, None),
    ('row', 'huggingface'): (1, None),
}

# What stands at the `*` of a row: a pattern of it, and its text for the self-attend k = 0, 1, ...
_PLACES = {
    'ours': (r'(?<=/)self_attend_([1-9]\d*)(?=/)', lambda k: f'self_attend_{k + 1}'),
    'deepmind': (
        r'(?<=/)self_attention(?:_([1-9]\d*))?(?=/)',
        lambda k: f'self_attention_{k}' if k else 'self_attention',
    ),
    'huggingface': (r'(?<=\.)self_attends\.(0|[1-9]\d*)(?=\.)', lambda k: f'self_attends.{k}'),
}


def recognise(names: Iterable[str]) -> str:
    """The kind of model that parameters belong to, by their names alone.

    Args:
      names: 'module:parameter' as we or DeepMind name them, or Hugging Face's names.

    Returns:
      'imagenet_fourier', 'imagenet_learned', 'imagenet_conv', 'optical_flow', 'mlm_bytes' or
      'video_autoencoding': the one that has most of these names, and fewest others.

    Raises:
      ValueError: The latents, which every Perceiver has, are not among the names.
    """
    return _recognise(names, *_PLACES)


def our_name(kind: str, module: str, parameter: str) -> tuple[str, str]:
    """Our name of a parameter or state of one of DeepMind's models.

    Args:
      kind: Of model, as `recognise` names it.
      module: Haiku module name in DeepMind's release, such as
        'perceiver_encoder/~/cross_attention/attention/linear'.
      parameter: Name within the module, such as 'w'.

    Returns:
      Module and parameter name here, such as ('encoder/cross_attend_1/attention/query', 'w').

    Raises:
      ValueError: The model has no such parameter.
    """
    name = f'{module}:{parameter}'
    key, k = _parse(name, 'deepmind')
    if key not in _rows(kind, 'deepmind'):
        raise Refused(f"{name!r} is no parameter of DeepMind's {kind}.")
    module, parameter = _write(_rows(kind, 'deepmind')[key][0].ours, k, 'ours').split(':')
    return module, parameter


def from_deepmind(params: Tree, state: Tree | None = None) -> tuple[Arrays, Arrays]:
    """DeepMind's parameters and state under our names and in our layout.

    Args:
      params: Of one of the six released models, of any size.
      state: Likewise; only the convolutional model has one.

    Returns:
      Parameters and state for our function of that model: 1x1 convolutions as matrices
      `[in, out]`, batch normalisation and paddings as vectors. 16-bit floats become float32.

    Raises:
      ValueError: Names or layouts that do not belong to the model.
    """
    params, state = _translate(_flatten(params, state), 'deepmind', 'ours')
    return _nest(params), _nest(state)


def to_deepmind(params: Tree, state: Tree | None = None) -> tuple[Arrays, Arrays]:
    """Our parameters and state in DeepMind's terms: the inverse of `from_deepmind`."""
    params, state = _translate(_flatten(params, state), 'ours', 'deepmind')
    return _nest(params), _nest(state)


def from_huggingface(
    tensors: Mapping[str, Any], *, conv_kernel: str = 'hub'
) -> tuple[Arrays, Arrays]:
    """Hugging Face's tensors under our names and in our layout.

    Their batch normalisation lacks the running averages before the correction for their start at
    zero, which only further training needs: these follow from the averages and the counter.

    Args:
      tensors: Of one of the six published models, of any size; their names with the prefix
        'perceiver.' or all without it.
      conv_kernel: Layout of the 7x7 kernel, where there is one: 'hub' as in the published file,
        with height and width swapped, or 'transformers' for one that was trained there.

    Returns:
      Parameters and state for our function of that model. 16-bit floats become float32.

    Raises:
      ValueError: Names or layouts that do not belong to the model, or an unknown `conv_kernel`.
    """
    tensors = dict(zip(_prefixed(tensors), tensors.values(), strict=True))
    params, state = map(_nest, _translate(tensors, 'huggingface', 'ours', conv_kernel))
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
    """Our parameters and state as Hugging Face's tensors: the inverse of `from_huggingface`."""
    params, state = _translate(_flatten(params, state), 'ours', 'huggingface', conv_kernel)
    return params | {  # torch counts in int64
        name: x.astype(np.int64) if x.dtype == np.int32 else x for name, x in state.items()
    }


def check_fit(
    params: Tree, state: Tree, expected_params: Tree, expected_state: Tree, source: Any
) -> None:
    """Raises one ValueError that names what is missing, left over or of another shape.

    Args:
      params: What was read, under our names.
      state: Likewise.
      expected_params: What the model needs: arrays, or their shapes.
      expected_state: Likewise.
      source: Where it was read from, for the message.
    """
    found, wanted = _flatten(params, state), _flatten(expected_params, expected_state)
    check_shapes(
        *({name: tuple(np.shape(x)) for name, x in tree.items()} for tree in (found, wanted)),
        source,
    )
    for name, value in found.items():
        if np.dtype(value.dtype).kind != np.dtype(wanted[name].dtype).kind:
            raise Refused(f'{source}: {name} is {value.dtype}, not {wanted[name].dtype}.')


def check_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: Any
) -> None:
    """Raises one ValueError that names what is missing, left over or of another shape.

    Args:
      found: Shapes by name.
      wanted: Likewise, what the model needs.
      source: Where they were found, for the message.
    """
    problems = {
        'missing': sorted(wanted.keys() - found.keys()),
        'left over': sorted(found.keys() - wanted.keys()),
        'of another shape': [
            f'{name} {found[name]}, not {wanted[name]}'
            for name in sorted(found.keys() & wanted.keys())
            if found[name] != wanted[name]
        ],
    }
    if any(problems.values()):
        listed = '; '.join(f'{what}: {_some(names)}' for what, names in problems.items() if names)
        raise Refused(f'{source} does not fit the model. {listed}.')


def _translate(
    arrays: Mapping[str, Any], source: str, target: str, conv_kernel: str = 'hub'
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays by name, from one of the table's columns to another: parameters, and state."""
    if conv_kernel not in ('hub', 'transformers'):
        raise Refused(f"conv_kernel must be 'hub' or 'transformers', not {conv_kernel!r}.")
    kind = _recognise(arrays, source)
    rows = _rows(kind, source)
    keys = {name: _parse(name, source) for name in arrays}
    if unknown := [name for name, (key, _) in keys.items() if key not in rows]:
        raise Refused(
            f'{len(unknown)} of these parameters do not belong to {kind}, which they are most '
            f'like: {_some(unknown)}.'
        )
    if source == 'ours':
        needed = {row.ours for row in _TABLE[kind] if row.tree == 'params' and '*' not in row.ours}
        if missing := sorted(needed - set(arrays)):
            raise Refused(
                f'This is none of the models that were released: most like {kind}, it lacks '
                f'{_some(missing)}.'
            )
    trees = {'params': {}, 'state': {}}
    for name, (key, k) in keys.items():
        for row in rows[key]:
            if getattr(row, target) is None:
                continue
            layout = conv_kernel if row.layout == 'conv7x7' else row.layout
            array = _widen(np.asarray(arrays[name]))
            try:
                array = _lay_out(_as_ours(array, layout, source), layout, target)
            except ValueError:
                raise Refused(
                    f'{name} is {array.shape}, which is no {row.layout} of {source}.'
                ) from None
            translated = _write(getattr(row, target), k, target)
            former = trees[row.tree].setdefault(translated, array)
            if former is not array and not np.array_equal(former, array):
                raise Refused(f'{name} is {array}, but another {translated} is {former}.')
    return trees['params'], trees['state']


def _lay_out(array: np.ndarray, layout: str, side: str) -> np.ndarray:
    ones, axes = _LAYOUTS.get((layout, side), (0, None))
    array = array[(None,) * ones]
    return array if axes is None else array.transpose(axes)


def _as_ours(array: np.ndarray, layout: str, side: str) -> np.ndarray:
    ones, axes = _LAYOUTS.get((layout, side), (0, None))
    array = array if axes is None else array.transpose(np.argsort(axes))
    return array.squeeze(tuple(range(ones)))


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name in ('float16', 'bfloat16') else array


def _recognise(names: Iterable[str], *sides: str) -> str:
    names = list(names)
    for side in sides:
        if kind := _closest(_prefixed(names) if side == 'huggingface' else names, side):
            return kind
    raise Refused(f'These parameters are of no Perceiver that is known: {_some(names)}.')


def _closest(names: Iterable[str], side: str) -> str | None:
    """The kind with the same latents, most of the names, and fewest others."""
    keys = {_parse(name, side)[0] for name in names}
    known = {kind: _rows(kind, side).keys() for kind in _TABLE}
    kinds = [kind for kind in _TABLE if next(iter(known[kind])) in keys]  # latents come first
    return max(
        kinds, key=lambda kind: (len(keys & known[kind]), -len(known[kind] - keys)), default=None
    )


@functools.cache
def _rows(kind: str, side: str) -> dict[tuple[str, ...], list[_Row]]:
    """The table of a kind of model by one of its columns, each name split at the `*`."""
    if kind not in _TABLE:
        raise Refused(f'kind must be one of {list(_TABLE)}, not {kind!r}.')
    rows = {}
    for row in _TABLE[kind]:
        if (name := getattr(row, side)) is not None:
            rows.setdefault(tuple(name.split('*')), []).append(row)
    return rows


def _parse(name: str, side: str) -> tuple[tuple[str, ...], int | None]:
    """Splits a name at its self-attend, and says which that is: its k, or None without one."""
    place = re.search(_PLACES[side][0], name)
    if place is None:
        return (name,), None
    k = int(place[1] or 0) - (side == 'ours')  # ours count from 1
    return (name[: place.start()], name[place.end() :]), k


def _write(name: str, k: int | None, side: str) -> str:
    return name if k is None else name.replace('*', _PLACES[side][1](k))


def _prefixed(names: Iterable[str]) -> list[str]:
    """Hugging Face's names with their prefix, which a bare PerceiverModel saves none of."""
    names = list(names)
    if any(name.startswith('perceiver.') for name in names):
        return names
    return [n if n.startswith('embedding_decoder.') else f'perceiver.{n}' for n in names]


def _flatten(*trees: Tree | None) -> dict[str, Any]:
    return {
        f'{module}:{parameter}': value
        for tree in trees
        for module, values in (tree or {}).items()
        for parameter, value in values.items()
    }


def _nest(arrays: Mapping[str, Any]) -> Arrays:
    tree = {}
    for name, value in arrays.items():
        module, parameter = name.split(':')
        tree.setdefault(module, {})[parameter] = np.asarray(value, order='C')
    return tree


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:9]) + (f' and {len(names) - 9} more' if len(names) > 9 else '')
