"""Weights as Haiku's trees: flat by name and nested again, and whether they fit a model.

The flat name of a parameter is 'module:parameter', such as 'encoder:latents'.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perceiver_jax.errors import Refused

Tree = Mapping[str, Mapping[str, Any]]  # Haiku's: module name -> parameter name -> array
Arrays = dict[str, dict[str, np.ndarray]]  # the same, of NumPy arrays
Shapes = Mapping[str, tuple[int, ...]]  # flat name -> shape
_LISTED_CHARACTERS = 230  # our choice: deviations.md#length-of-messages


def flatten(*trees: Tree | None) -> dict[str, Any]:
    """Returns the arrays of trees by their flat names.

    Args:
      *trees: Parameters or state; None counts as an empty tree.

    Returns:
      {'module:parameter': array}, in the order of the trees.
    """
    flat = {}
    for tree in trees:
        for module, values in (tree or {}).items():
            for parameter, value in values.items():
                flat[f'{module}:{parameter}'] = value
    return flat


def nest(arrays: Mapping[str, Any]) -> Arrays:
    """Returns the tree of arrays that have flat names: the inverse of `flatten` for one tree.

    Args:
      arrays: {'module:parameter': array}.

    Returns:
      Module name -> parameter name -> NumPy array, each contiguous in C order.
    """
    tree: Arrays = {}
    for name, value in arrays.items():
        module, parameter = name.split(':')
        tree.setdefault(module, {})[parameter] = np.asarray(value, order='C')
    return tree


def widen(array: np.ndarray) -> np.ndarray:
    """Returns an array with 16-bit floats as float32.

    Args:
      array: An array of any dtype.

    Returns:
      A float32 copy where `array` is float16 or bfloat16, otherwise `array` itself.
    """
    return array.astype(np.float32) if array.dtype.name in ('float16', 'bfloat16') else array


def list_names(names: Sequence[str]) -> str:
    """Returns names as text for a message: the first ones, and how many more there are.

    At most nine, and fewer where they are long: messages stay within a few lines.

    Args:
      names: Names in the order in which they are listed.

    Returns:
      Text such as 'a, b, c'.
    """
    ends = itertools.accumulate(len(name) + 2 for name in names[:9])
    count = max(1, sum(end <= _LISTED_CHARACTERS for end in ends))
    listed = f'{", ".join(names[:count]):.{_LISTED_CHARACTERS}}'
    return f'{listed} and {len(names) - count} more' if len(names) > count else listed


def check_fit(
    params: Tree,
    state: Tree,
    expected_params: Tree,
    expected_state: Tree,
    source: str | os.PathLike,
) -> None:
    """Checks that weights are what a model needs.

    Args:
      params: Parameters that were read, under our names.
      state: State that was read, under our names.
      expected_params: Parameters that the model needs: arrays, or their shapes and dtypes.
      expected_state: State that the model needs: arrays, or their shapes and dtypes.
      source: Where the weights were read from, for the message.

    Raises:
      Refused: Weights are missing, left over, of another shape or of another kind of dtype; the
        message names them.
    """
    found, wanted = flatten(params, state), flatten(expected_params, expected_state)
    check_shapes(
        {name: np.shape(value) for name, value in found.items()},
        {name: np.shape(value) for name, value in wanted.items()},
        source,
    )
    for name, value in found.items():
        if np.dtype(value.dtype).kind != np.dtype(wanted[name].dtype).kind:
            raise Refused(f'{source}: {name:.200} is {value.dtype}, not {wanted[name].dtype}.')


def check_shapes(found: Shapes, wanted: Shapes, source: str | os.PathLike) -> None:
    """Checks that arrays have the names and shapes that are needed.

    Args:
      found: Shapes of the arrays that were read, by name.
      wanted: Shapes of the arrays that are needed, by name.
      source: Where the arrays were read from, for the message.

    Raises:
      Refused: Arrays are missing, left over or of another shape; the message names them.
    """
    different = [
        name for name in sorted(found.keys() & wanted.keys()) if found[name] != wanted[name]
    ]
    problems = {
        'missing': sorted(wanted.keys() - found.keys()),
        'left over': sorted(found.keys() - wanted.keys()),
        'of another shape': [f'{name} {found[name]}, not {wanted[name]}' for name in different],
    }
    listed = [f'{what}: {list_names(names)}' for what, names in problems.items() if names]
    if listed:
        raise Refused(f'{source} does not fit the model. {"; ".join(listed):.400}.')
