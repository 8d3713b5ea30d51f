"""Files of weights in DeepMind's and Hugging Face's formats, read and written.

Names and layouts stay those of the file; `translation` brings them to ours and back.
"""

import mmap
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, whole, write_whole
from perceiver_jax.weights.translation import recognise
from perceiver_jax.weights.trees import Arrays, Tree, flatten, list_names, nest, widen

# The files that transformers looks for in the folder of a model, in this order.
_NAMES_IN_FOLDER = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)


def read_deepmind(path: str | os.PathLike) -> tuple[Arrays, Arrays]:
    """Reads a file of DeepMind's release, without running anything that is in it.

    A pickle can call any function while it is read. Here it gets dictionaries in the place of
    Haiku's mappings, arrays of plain numbers in the place of NumPy's and JAX's, and nothing else.
    It takes no more memory than its own size accounts for.

    Args:
      path: A `.pystate` or `.pickle` file: a pickle of `{'params', 'state'}`, or of parameters
        alone.

    Returns:
      Parameters and state under the names and in the layouts of the file.

    Raises:
      Refused: The file does not exist, is damaged or of another kind, or its pickle asks for
        something else.
    """
    path = _existing(path)
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_instructions(data)
            data.seek(0)
            content = _Unpickler(data).load()
    except Refused as refused:
        raise Refused(
            f'{path} asks for {refused!s:.200}, which weights do not need: it was refused, and '
            'nothing in the file was run.'
        ) from None
    except Exception as error:  # what pickle raises depends on which byte is wrong
        raise Refused(
            f"{path} is not a pickle of DeepMind's parameters, or damaged: "
            f'{type(error).__name__}: {error!s:.200}.'
        ) from None
    if not isinstance(content, dict) or content.keys() != {'params', 'state'}:
        content = {'params': content, 'state': {}}
    if not (_is_tree(content['params']) and _is_tree(content['state'])):
        raise Refused(
            f"{path} is not a pickle of DeepMind's parameters: it holds something else than a "
            'dictionary of dictionaries of arrays.'
        )
    return _arrays_of(content['params']), _arrays_of(content['state'])


def write_deepmind(path: str | os.PathLike, params: Tree, state: Tree | None = None) -> None:
    """Writes a file like those of DeepMind's release, by an atomic write.

    It holds plain dictionaries of NumPy arrays; Python 3.4 and any NumPy can read it.

    Args:
      path: The file, replaced if it exists.
      params: Parameters in DeepMind's names and layouts, as `to_deepmind` returns them.
      state: State in DeepMind's names and layouts; None where the model has none.

    Raises:
      Refused: The names are those of none of the released models.
    """
    kind = recognise(flatten(params, state), 'deepmind')
    params, state = nest(flatten(params)), nest(flatten(state))
    content = {'params': params, 'state': state} if kind.startswith('imagenet') else params
    with whole(path) as unfinished, unfinished.open('wb') as file:
        _Pickler(file, protocol=4).dump(content)


def read_huggingface(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a model that was published on Hugging Face, or saved for it.

    Args:
      path: A `.safetensors` file; torch's `.bin`, which needs torch and is read without running
        anything that is in it; the `.index.json` of several such files; or the folder of one of
        these.

    Returns:
      Tensors by name, 16-bit floats as float32.

    Raises:
      Refused: The file does not exist, is damaged, incomplete or of another kind, or needs torch
        where torch is not installed.
    """
    path = _existing(path)
    if path.is_dir():
        path = _file_in(path)
    if path.name.endswith('.index.json'):
        return _read_parts(path)
    return _read_tensors(path)


def write_huggingface(path: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Writes a `.safetensors` file that transformers loads, by an atomic write.

    Args:
      path: The file, replaced if it exists; in the folder of a model, transformers looks for
        'model.safetensors'.
      tensors: Tensors in Hugging Face's names and layouts, as `to_huggingface` returns them.
    """
    from safetensors.numpy import save

    # safetensors writes an array's memory as it lies, so that has to be in C order.
    tensors = {name: np.asarray(value, order='C') for name, value in tensors.items()}
    write_whole(path, save(tensors, metadata={'format': 'pt'}))  # transformers asks for that


class _Dtype:
    """Stands in for NumPy's in a pickle: plain numbers only, so that no bytes become pointers."""

    def __init__(self, code, *_):
        if not re.fullmatch(r'[<>=|]?[biuf][1248]', code):
            raise Refused(f'an array of dtype {str(code)[:40]!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
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
        self.array = _Array(shape, dtype, data, 'F' if is_fortran else 'C').array


def _is_tree(content: Any) -> bool:
    """Whether this is module name -> parameter name -> `_Array`, each with its content."""
    if not isinstance(content, dict):
        return False
    for values in content.values():
        if not isinstance(values, dict):
            return False
        if not all(isinstance(x, _Array) and hasattr(x, 'array') for x in values.values()):
            return False
    return True


def _arrays_of(tree: dict[str, dict[str, _Array]]) -> Arrays:
    return {
        module: {name: value.array for name, value in values.items()}
        for module, values in tree.items()
    }


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
        return _Array.__new__(_Array)  # a __setstate__ follows

    def from_jax(function, arguments, state, *_):
        array = empty()
        array.__setstate__(state)
        return array

    return {
        'haiku._src.data_structures.FlatMapping': mapping,
        'haiku._src.data_structures.FlatMap': mapping,
        'haiku._src.data_structures.frozendict': mapping,
        'collections.OrderedDict': mapping,
        'numpy.ndarray': _Array,
        'numpy.dtype': _Dtype,
        'numpy.core.multiarray._reconstruct': empty,
        'numpy.core.multiarray.scalar': lambda dtype, data: _Array((), dtype, data),
        'numpy.core.numeric._frombuffer': lambda data, dtype, shape, *order: _Array(
            shape, dtype, data, *order
        ),
        '_codecs.encode': encode,
        'jax.interpreters.xla.reconstruct_device_array': from_jax,
        'jax._src.device_array.reconstruct_device_array': from_jax,
        'jax._src.array._reconstruct_array': from_jax,
    }


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: mmap.mmap):
        super().__init__(data)
        self._unspent = len(data)  # whatever is copied once is not larger than the file

    def _spend(self, size: int) -> None:
        self._unspent -= size
        if self._unspent < 0:
            raise ValueError('it copies more than the file holds')

    def find_class(self, module, name):
        name = f'{module.replace("numpy._core", "numpy.core")}.{name}'
        stand_ins = _stand_ins(self._spend)  # made anew: what a pickle sets on one is gone with it
        if name not in stand_ins:
            raise Refused(name)
        return stand_ins[name]


class _Pickler(pickle.Pickler):
    def reducer_override(self, value):
        # NumPy's own way names a module that was called otherwise before NumPy 2.
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, value.tobytes())
        return NotImplemented


def _file_in(folder: Path) -> Path:
    """Returns the file of a folder that transformers would read."""
    for name in _NAMES_IN_FOLDER:
        if (folder / name).exists():
            return folder / name
    raise Refused(f'{folder} holds none of {", ".join(_NAMES_IN_FOLDER)}.')


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of several files, given the index that says which is in which."""
    files = read_json(index, 'an index of tensors').get('weight_map')
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise Refused(f"{index} is not an index of tensors: it has no 'weight_map' of file names.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted({Path(file).name for file in files.values()}):
        if not os.path.isfile(index.parent / name):
            raise Refused(f'{index}: {name!r:.80} does not exist beside it.')
        tensors |= _read_tensors(index.with_name(name))
    missing = sorted(files.keys() - tensors.keys())
    if missing:
        raise Refused(
            f'{index} promises tensors that are in none of its files: {list_names(missing)}.'
        )
    return tensors


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    path = _existing(path)
    if path.suffix == '.safetensors':
        tensors = _read_safetensors(path)
    elif path.suffix == '.bin':
        tensors = _read_torch(path)
    else:
        raise Refused(f'{path} is neither a .safetensors nor a .bin file.')
    return {name: widen(array) for name, array in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # among them AttributeError, for a dtype that NumPy lacks
        raise Refused(f'{path} is not a safetensors file, or damaged: {error!s:.200}.') from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise Refused(
            f'{path} can only be read with torch, which is not installed; a .safetensors file '
            'needs no torch.'
        ) from None
    short = (torch.float16, torch.bfloat16)  # NumPy lacks the latter
    try:
        tensors = torch.load(path, map_location='cpu', weights_only=True)
        return {
            name: (tensor.float() if tensor.dtype in short else tensor).detach().numpy()
            for name, tensor in tensors.items()
        }
    except Exception as error:  # what torch raises depends on which byte is wrong
        # Its own message may advise to run what is in the file.
        raise Refused(
            f"{path} is damaged, or holds more than torch's tensors: {type(error).__name__}; "
            'nothing in it was run.'
        ) from None


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.exists():
        raise Refused(f'{path} does not exist.')
    return path
