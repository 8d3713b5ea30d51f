"""DeepMind's published weights as ours: the only file that knows foreign parameter names."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Tree = Mapping[str, Mapping[str, Any]]  # Haiku's: module name -> parameter name -> array

_DECODER = 'classification_decoder/~/basic_decoder'
_CONV = 'image_preprocessor/~/conv2_d_downsample/~'
_POSITIONS = 'image_preprocessor/~_build_network_inputs'
_PROJECTOR = f'{_POSITIONS}/position_encoding_projector/linear'

# 'module:parameter' as DeepMind names it, a pattern of the whole -> ours. Layers come below.
_NAMES = {
    r'perceiver_encoder/~/trainable_position_encoding:pos_embs': 'encoder:latents',
    r'perceiver_encoder/~/cross_attention/(.*)': r'encoder/cross_attend_1/\1',
    r'perceiver_encoder/~/self_attention/(.*)': r'encoder/block_1/self_attend_1/\1',
    r'perceiver_encoder/~/self_attention_(\d+)/(.*)': (
        lambda match: f'encoder/block_1/self_attend_{int(match[1]) + 1}/{match[2]}'
    ),
    rf'{_DECODER}/~/trainable_position_encoding:pos_embs': 'decoder:query',
    rf'{_DECODER}/cross_attention/(.*)': r'decoder/query_decoder/cross_attend/\1',
    rf'{_DECODER}/output:(.*)': r'decoder/query_decoder/output:\1',
    r'image_preprocessor/~/conv2_d:(.*)': r'inputs/conv1x1:\1',
    rf'{_CONV}/conv:w': 'inputs/conv7x7:w',
    rf'{_CONV}/batchnorm:(.*)': r'inputs/conv7x7/batch_norm:\1',
    rf'{_CONV}/batchnorm/~/mean_ema:average': 'inputs/conv7x7/batch_norm:mean',
    rf'{_CONV}/batchnorm/~/mean_ema:hidden': 'inputs/conv7x7/batch_norm:mean_hidden',
    rf'{_CONV}/batchnorm/~/var_ema:average': 'inputs/conv7x7/batch_norm:variance',
    rf'{_CONV}/batchnorm/~/var_ema:hidden': 'inputs/conv7x7/batch_norm:variance_hidden',
    rf'{_CONV}/batchnorm/~/(mean|var)_ema:counter': 'inputs/conv7x7/batch_norm:counter',
    rf'{_POSITIONS}/trainable_position_encoding:pos_embs': 'inputs/position_encoding:positions',
    rf'{_PROJECTOR}:(.*)': r'inputs/position_encoding/projection:\1',
}
_LAYERS = {
    'attention/linear': 'attention/query',
    'attention/linear_1': 'attention/key',
    'attention/linear_2': 'attention/value',
    'attention/linear_3': 'attention/output',
    'mlp/linear': 'mlp/hidden',
    'mlp/linear_1': 'mlp/output',
}
_NORMS = {
    'cross_attend': {
        'layer_norm': 'norm_queries',
        'layer_norm_1': 'norm_inputs',
        'layer_norm_2': 'norm_mlp',
    },
    'self_attend': {'layer_norm': 'norm_attention', 'layer_norm_1': 'norm_mlp'},
}


def our_name(module: str, parameter: str) -> tuple[str, str]:
    """Our name of a parameter or state of DeepMind's ImageNet models.

    Args:
      module: Haiku module name in DeepMind's release, such as
        'perceiver_encoder/~/cross_attention/attention/linear'.
      parameter: Name within the module, such as 'w'.

    Returns:
      Module and parameter name here, such as ('encoder/cross_attend_1/attention/query', 'w').

    Raises:
      ValueError: The name belongs to none of these models.
    """
    theirs = f'{module}:{parameter}'
    for pattern, ours in _NAMES.items():
        if match := re.fullmatch(pattern, theirs):
            name = match.expand(ours) if isinstance(ours, str) else ours(match)
            module, parameter = name.split(':')
            return _rename_layer(module), parameter
    raise ValueError(f"{theirs!r} is no parameter of DeepMind's ImageNet models.")


def _rename_layer(module: str) -> str:
    attend = re.fullmatch(r'(.*/(cross_attend|self_attend)(?:_\d+)?)/(.*)', module)
    if attend is None:
        return module
    owner, kind, layer = attend.groups()
    return f'{owner}/{(_LAYERS | _NORMS[kind])[layer]}'


def from_deepmind(tree: Tree) -> dict[str, dict[str, np.ndarray]]:
    """DeepMind's parameters, or state, under our names and in our layout.

    Args:
      tree: Parameters or state of one of the three released ImageNet models.

    Returns:
      The same values: 1x1 convolutions as matrices `[in, out]`, batch normalisation as vectors.

    Raises:
      ValueError: A name that belongs to none of these models.
    """
    ours: dict[str, dict[str, np.ndarray]] = {}
    for module, parameters in tree.items():
        for parameter, value in parameters.items():
            name, key = our_name(module, parameter)
            value = np.asarray(value)
            if name == 'inputs/conv1x1' and key == 'w':
                value = value[0, 0]
            elif name == 'inputs/conv7x7/batch_norm' and value.ndim:
                value = value.reshape(-1)
            ours.setdefault(name, {})[key] = value
    return ours
