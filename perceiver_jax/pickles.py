"""Pickles of arrays, read without running anything that is in them.

A pickle can call any function while it is read. Here it gets arrays of plain numbers in the place
of NumPy's and JAX's, dictionaries in the place of other mappings, and nothing else.
"""

import mmap
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from perceiver_jax.errors import Refused

# Names that a pickle may ask for: those of NumPy's and JAX's arrays, and of Haiku's mappings.
ARRAYS = (
    'numpy.ndarray',
    'numpy.dtype',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy.core.numeric._frombuffer',
    '_codecs.encode',
    'jax.interpreters.xla.reconstruct_device_array',
    'jax._src.device_array.reconstruct_device_array',
    'jax._src.array._reconstruct_array',
)
MAPPINGS = (
    'haiku._src.data_structures.FlatMapping',
    'haiku._src.data_structures.FlatMap',
    'haiku._src.data_structures.frozendict',
    'collections.OrderedDict',
)


def read_pickle(
    path: str | os.PathLike, what: str, admitted: Collection[str], *, encoding: str = 'ASCII'
) -> Any:
    """Reads a pickle that may ask for certain names only.

    It takes no more memory than the size of the file accounts for.

    Args:
      path: The file.
      what: What the file should be, such as 'a batch of CIFAR-10'; for messages.
      admitted: Names that the pickle may ask for, some of `ARRAYS` and `MAPPINGS`; NumPy 2's names
        count as those of before.
      encoding: Of the texts of Python 2; 'bytes' leaves them as bytes, which arrays of Python 2
        need.

    Returns:
      What the pickle holds, a `PickledArray` in the place of each array.

    Raises:
      Refused: The file is damaged or of another kind, or asks for something else.
    """
    path = Path(path)
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_instructions(data)
            data.seek(0)
            return _Unpickler(data, admitted, encoding).load()
    except Refused as refused:
        raise Refused(
            f'{path} asks for {refused!s:.200}, which {what} does not need: it was refused, and '
            'nothing in the file was run.'
        ) from None
    except Exception as error:  # what pickle raises depends on which byte is wrong
        raise Refused(
            f'{path} is not {what}, or damaged: {type(error).__name__}: {error!s:.200}.'
        ) from None


class PickledArray:
    """Stands in for NumPy's in a pickle, whose own `__setstate__` trusts what it is given."""

    array: np.ndarray  # not there before `__setstate__` where a pickle makes it without arguments

    def __init__(self, shape, dtype, data, order='C', axes=None):
        dtype = dtype if isinstance(dtype, _Dtype) else _Dtype(dtype)
        array = np.frombuffer(data, dtype.dtype)
        if order == 'K':  # NumPy's for an array that is contiguous in another order of its axes
            self.array = array.reshape(shape).transpose(axes)
        else:
            self.array = array.reshape(shape, order=order)

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.array = PickledArray(shape, dtype, data, 'F' if is_fortran else 'C').array

    @property
    def is_whole(self) -> bool:
        """Whether the pickle gave it its content."""
        return hasattr(self, 'array')


class _Dtype:
    """Stands in for NumPy's in a pickle: plain numbers only, so that no bytes become pointers."""

    def __init__(self, code, *_):
        code = _text(code)
        if not re.fullmatch(r'[<>=|]?[biuf][1248]', code):
            raise Refused(f'an array of dtype {str(code)[:40]!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


def _text(value: str | bytes) -> str:
    return value.decode('ascii') if isinstance(value, bytes) else value


def _check_instructions(data: mmap.mmap) -> None:
    """Checks a pickle's instructions, all of which end within the file, before one is followed.

    The memo grows to the index that an instruction names, and buffers to the length.
    """
    instructions = pickletools.genops(cast(IO[bytes], data))
    for number, (instruction, argument, place) in enumerate(instructions):
        if not isinstance(argument, int):
            continue
        if instruction.name == 'FRAME' and argument > len(data) - (place or 0):
            raise ValueError(f'a frame of {argument} bytes, of which the file has fewer')
        if instruction.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > number:
            raise ValueError(f'entry {argument} of the memo, of {number} instructions')


def _stand_ins(spend: Callable[[int], None]) -> dict[str, Callable]:
    """What a pickle gets for each name that it may ask for.

    Args:
      spend: Called with the size of what is copied, which instructions could repeat.
    """

    def mapping(*content):
        made = dict(*content)
        spend(len(made))
        return made

    def encode(text, _):
        spend(len(text))
        return text.encode('latin1')  # bytes in protocols 0 to 2

    def empty(*_):
        return PickledArray.__new__(PickledArray)  # a __setstate__ follows

    def from_jax(function, arguments, state, *_):
        array = empty()
        array.__setstate__(state)
        return array

    return {
        'haiku._src.data_structures.FlatMapping': mapping,
        'haiku._src.data_structures.FlatMap': mapping,
        'haiku._src.data_structures.frozendict': mapping,
        'collections.OrderedDict': mapping,
        'numpy.ndarray': PickledArray,
        'numpy.dtype': _Dtype,
        'numpy.core.multiarray._reconstruct': empty,
        'numpy.core.multiarray.scalar': lambda dtype, data: PickledArray((), dtype, data),
        'numpy.core.numeric._frombuffer': lambda data, dtype, shape, *order: PickledArray(
            shape, dtype, data, *order
        ),
        '_codecs.encode': encode,
        'jax.interpreters.xla.reconstruct_device_array': from_jax,
        'jax._src.device_array.reconstruct_device_array': from_jax,
        'jax._src.array._reconstruct_array': from_jax,
    }


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: mmap.mmap, admitted: Collection[str], encoding: str):
        super().__init__(data, encoding=encoding)
        self._admitted = admitted
        self._unspent = len(data)  # whatever is copied once is not larger than the file

    def _spend(self, size: int) -> None:
        self._unspent -= size
        if self._unspent < 0:
            raise ValueError('it copies more than the file holds')

    def find_class(self, module, name):
        name = f'{module.replace("numpy._core", "numpy.core")}.{name}'
        if name not in self._admitted:
            raise Refused(name)
        return _stand_ins(self._spend)[name]  # made anew: what a pickle sets on one is gone with it
