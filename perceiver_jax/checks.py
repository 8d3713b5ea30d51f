"""What the doors of the package refuse: unknown fields, other axes, one number for a pair."""

import dataclasses
import difflib
import inspect
import numbers
import operator
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_args

import haiku as hk
import numpy as np

from perceiver_jax.errors import Refused

_T = TypeVar('_T')


def check_fields(
    owner: Callable[..., Any],
    fields: Mapping[str, Any],
    given: Collection[str] = ('implementation', 'name'),
) -> None:
    """Checks a mapping of fields, before a module or a function is called with them.

    Args:
      owner: The module or the function.
      fields: Field name -> value.
      given: Fields that are not to be set in the mapping: what is around sets them.

    Raises:
      Refused: A field is unknown, or not to be set here; it names those that are known, and those
        that may have been meant. Or there is no mapping.
    """
    if not hasattr(fields, 'keys'):
        raise Refused(f'{owner.__name__} takes a mapping of fields, not {fields!r}.')
    known = [name for name in inspect.signature(owner).parameters if name not in given]
    if unknown := [name for name in fields if name not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=3, cutoff=0.5)
        meant = f' Did you mean {" or ".join(close)}?' if close else ''
        raise Refused(
            f'{owner.__name__} has no field {unknown[0]!r} that can be set here; '
            f'known: {", ".join(known)}.{meant}'
        )


def build(owner: Callable[..., _T], fields: Mapping[str, Any], **given: Any) -> _T:
    """Calls a module or a function with a mapping of fields.

    Args:
      owner: The module or the function.
      fields: Field name -> value.
      **given: Fields that the caller sets itself.

    Returns:
      What the owner returns.

    Raises:
      Refused: A field is unknown, missing, or not to be set here, or there is no mapping.
    """
    check_fields(owner, fields, given)
    missing = [
        name
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.default is parameter.empty and name not in {*fields, *given}
    ]
    if missing:
        raise Refused(f'{owner.__name__} needs {", ".join(missing)}; there is {[*fields]}.')
    return owner(**fields, **given)


@dataclasses.dataclass
class Module(hk.Module):
    """A Haiku module that refuses unknown fields, and what is no integer where one belongs.

    Its subclasses are dataclasses.
    """

    def __new__(cls, *args: Any, **fields: Any):
        """Checks the names of fields before Haiku does, whose error names no near misses."""
        check_fields(cls, fields, given=())
        return super().__new__(cls)

    def __post_init__(self):
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            options = get_args(field.type) if isinstance(field.type, types.UnionType) else ()
            if int not in (field.type, *options) or (value is None and type(None) in options):
                continue
            check_integers(type(self).__name__, **{field.name: value})


def check_integers(where: str, **values: Any) -> None:
    """Checks that values can count something.

    Args:
      where: What takes them, such as 'Encoder'.
      **values: Name of an argument -> what was given: an integer of Python, of NumPy or of jax.

    Raises:
      Refused: One of them is something else, such as 2.5 or a list.
    """
    for name, value in values.items():
        try:
            operator.index(value)
        except TypeError:
            raise Refused(f'{where} takes {name} as an integer, not {value!r}.') from None


def check_number(name: str, value: Any) -> None:
    """Checks that a value is one number.

    Args:
      name: Name of the argument.
      value: What was given.

    Raises:
      Refused: It is something else, such as a pair.
    """
    if not isinstance(value, numbers.Real) and getattr(value, 'shape', None) != ():
        raise Refused(f'{name} must be one number, got {value!r}')


def check_array(where: str, name: str, value: Any) -> None:
    """Checks that a value is an array.

    Args:
      where: What takes it, such as 'Encoder'.
      name: Name of the argument.
      value: What was given.

    Raises:
      Refused: It is something else, such as a list.
    """
    if not (hasattr(value, 'dtype') and hasattr(value, 'shape')):
        raise Refused(
            f'{where} takes {name} as an array, not as {type(value).__name__}: '
            'numpy.asarray makes an array of numbers.'
        )


def check_axes(where: str, **arrays: tuple[Any, str]) -> None:
    """Checks that arrays have the axes that are documented, and that axes of one name agree.

    Args:
      where: What takes the arrays, such as 'Encoder'.
      **arrays: Name of an argument -> what was given and the names of its axes, such as 'B M C'; a
        number is the size of an axis. None in place of an array is not checked.

    Raises:
      Refused: One of them is no array, or has other axes.
    """
    given = {name: (x, axes.split()) for name, (x, axes) in arrays.items() if x is not None}
    sizes: dict[str, int] = {}
    fit = True
    for name, (x, axes) in given.items():
        check_array(where, name, x)
        fit = fit and len(x.shape) == len(axes)
        for axis, size in zip(axes, x.shape, strict=False):
            fit = fit and size == (int(axis) if axis.isdigit() else sizes.setdefault(axis, size))
    if not fit:
        wanted = ' and '.join(f'{name} [{", ".join(axes)}]' for name, (_, axes) in given.items())
        shapes = ' and '.join(str(tuple(x.shape)) for x, _ in given.values())
        raise Refused(f'{where} takes {wanted}; got {shapes}.')


def check_entries(name: str, values: Any, number: int, of: str) -> None:
    """Checks that there is one number for each of several things, such as the sides of an image.

    Args:
      name: Name of the argument.
      values: What was given.
      number: How many numbers there should be.
      of: What each of them is for, for the message, such as '2 axes of the grid'.

    Raises:
      Refused: It is a single number, a text, or of another length.
    """
    if np.shape(values) != (number,):
        shown = tuple(values) if np.ndim(values) else repr(values)
        raise Refused(f'{name} {shown} must have one entry for each of the {of}.')
