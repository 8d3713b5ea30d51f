"""Arguments of models as they were saved before, in the words of today.

Format 1 of saved models, and the config.json of runs of that time, give the fields of `CrossAttend`
and `SelfAttend` one by one; format 2 gives them as the mappings `cross_attend` and `self_attend`.
"""

from collections.abc import Mapping
from typing import Any

# Old key -> where its value goes today, as pairs of a mapping and its key.
Moves = Mapping[str, tuple[tuple[str, str], ...]]
_ENCODER: Moves = {
    'num_cross_attend_heads': (('cross_attend', 'num_heads'),),
    'num_self_attend_heads': (('self_attend', 'num_heads'),),
    'cross_attend_qk_channels': (('cross_attend', 'qk_channels'),),
    'cross_attend_v_channels': (('cross_attend', 'v_channels'),),
    'self_attend_qk_channels': (('self_attend', 'qk_channels'),),
    'self_attend_v_channels': (('self_attend', 'v_channels'),),
    'cross_attend_widening_factor': (('cross_attend', 'widening_factor'),),
    'self_attend_widening_factor': (('self_attend', 'widening_factor'),),
    'use_query_residual': (('cross_attend', 'use_query_residual'),),
    'dropout_rate': (('cross_attend', 'dropout_rate'), ('self_attend', 'dropout_rate')),
}
_DECODER: Moves = {
    name: (('cross_attend', name),)
    for name in (
        'num_heads',
        'qk_channels',
        'v_channels',
        'widening_factor',
        'use_query_residual',
        'dropout_rate',
    )
}


def upgrade_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the old keys among a model's arguments.

    Args:
      arguments: Keyword arguments of a function of `perceiver_jax.models`, of any format.

    Returns:
      The arguments with the keys of today; those that have them already stay as they are.
    """
    upgraded = dict(arguments)
    for part, moves in (('encoder', _ENCODER), ('decoder', _DECODER)):
        if isinstance(upgraded.get(part), Mapping):
            upgraded[part] = _move(upgraded[part], moves)
    return upgraded


def _move(fields: Mapping[str, Any], moves: Moves) -> dict[str, Any]:
    moved = {name: value for name, value in fields.items() if name not in moves}
    for name, value in fields.items():
        for mapping, key in moves.get(name, ()):
            moved[mapping] = {**moved.get(mapping, {}), key: value}
    return moved
