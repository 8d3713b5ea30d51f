"""Parameters chosen by patterns of their names, such as those that training leaves as they are.

Flat names are 'module:parameter', see `trees`.
"""

import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from perceiver_jax.errors import Refused
from perceiver_jax.weights.trees import Tree, flatten, list_names

_Label = TypeVar('_Label')


def matching(patterns: Collection[str], names: Collection[str]) -> set[str]:
    """Returns the flat names that patterns choose.

    A pattern is a module, such as 'encoder', which stands for everything below it; a flat name,
    such as 'encoder:latents'; or either with the wildcards of `fnmatch`, such as
    'encoder/block_*/self_attend_1' or '*:b'. A star also stands for slashes and colons.

    Args:
      patterns: Patterns, in any order.
      names: The flat names to choose from.

    Returns:
      Those of the names that at least one pattern matches.

    Raises:
      Refused: A pattern matches nothing; it names those that may have been meant. Or there is one
        text in place of a collection of them.
    """
    if isinstance(patterns, str):
        raise Refused(f'patterns are a list of texts, not one: write [{patterns!r:.80}].')
    found: set[str] = set()
    for pattern in patterns:
        whole_or_below = (pattern, f'{pattern}/*', f'{pattern}:*')
        matched = {name for name in names if any(fnmatchcase(name, p) for p in whole_or_below)}
        if not matched:
            raise Refused(f'{pattern!r:.80} matches no parameter. {_near_misses(pattern, names)}')
        found |= matched
    return found


def parameter_labels(
    params: Tree, patterns: Mapping[str, _Label], default: _Label
) -> dict[str, dict[str, _Label]]:
    """Labels each parameter by its name, as `optax.multi_transform` takes it.

    The first pattern that matches gives the label: put the narrow ones in front of the wide ones.

        labels = parameter_labels(params, {'decoder': 'train'}, default='freeze')
        optimizer = optax.multi_transform(
            {'train': optax.adam(1e-3), 'freeze': optax.set_to_zero()}, labels
        )

    Args:
      params: Parameters: module name -> parameter name -> array.
      patterns: Pattern, as `matching` takes it -> label.
      default: Label of what no pattern matches.

    Returns:
      Labels in the structure of `params`.

    Raises:
      Refused: A pattern matches nothing.
    """
    names = flatten(params)
    labels: dict[str, _Label] = {}
    for pattern, label in patterns.items():
        labels = {**dict.fromkeys(matching([pattern], names), label), **labels}
    return {
        module: {name: labels.get(f'{module}:{name}', default) for name in values}
        for module, values in params.items()
    }


def _near_misses(pattern: str, names: Collection[str]) -> str:
    parts = [name.partition(':')[0].split('/') for name in names]
    modules = {'/'.join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
    close = difflib.get_close_matches(pattern, sorted(modules | {*names}), n=3, cutoff=0.5)
    if close:
        return f'Did you mean {" or ".join(close)}?'
    return f'There are {list_names(sorted({part[0] for part in parts}))}, and what is below them.'
