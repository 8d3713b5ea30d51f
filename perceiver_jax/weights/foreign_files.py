"""DeepMind's and Hugging Face's files, read and written in their terms."""

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.files import whole, write_whole
from perceiver_jax.weights.translation import (
    Arrays,
    Tree,
    _flatten,
    _nest,
    _recognise,
    _some,
    _widen,
)


def read_deepmind(path: str | os.PathLike) -> tuple[Arrays, Arrays]:
    """Reads a file of DeepMind's release, without running anything that is in it.

    A pickle can call any function while it is read. Here it gets dictionaries in the place of
    Haiku's mappings, arrays of plain numbers in the place of NumPy's and JAX's, and nothing else.

    Args:
      path: `.pystate` or `.pickle`: a pickle of `{'params', 'state'}`, or of parameters alone.

    Returns:
      Parameters and state in DeepMind's terms.

    Raises:
      ValueError: The file does not exist, is damaged, of another kind, or asks for more than that.
    """
    path = _existing(path)
    try:
        with path.open('rb') as file:
            content = _Unpickler(file).load()
        if content.keys() != {'params', 'state'}:
            content = {'params': content, 'state': {}}
        params, state = (
            {
                module: {name: value.array for name, value in values.items()}
                for module, values in content[tree].items()
            }
            for tree in ('params', 'state')
        )
    except Refused as refused:
        raise Refused(
            f'{path} asks for {refused}, which weights do not need: it was refused, and nothing in '
            'the file was run.'
        ) from None
    except Exception as error:  # what pickle raises depends on which byte is wrong
        raise Refused(
            f"{path} is not a pickle of DeepMind's parameters, or damaged: {error!r}."
        ) from None
    return params, state


def write_deepmind(path: str | os.PathLike, params: Tree, state: Tree | None = None) -> None:
    """Writes a file like those of DeepMind's release, whole or not at all.

    It holds plain dictionaries of NumPy arrays; Python 3.4 and any NumPy can read it.

    Args:
      path: The file.
      params: In DeepMind's terms, as `to_deepmind` returns them.
      state: Likewise.

    Raises:
      ValueError: They belong to none of the released models.
    """
    kind = _recognise(_flatten(params, state), 'deepmind')
    params, state = _nest(_flatten(params)), _nest(_flatten(state))
    content = {'params': params, 'state': state} if kind.startswith('imagenet') else params
    with whole(path) as unfinished, unfinished.open('wb') as file:
        _Pickler(file, protocol=4).dump(content)


def read_huggingface(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a model that was published on Hugging Face, or saved for it.

    Args:
      path: A `.safetensors` file; torch's `.bin`, which needs torch and is read without running
        anything that is in it; the `.index.json` of several such; or the folder of one of these.

    Returns:
      Tensors by name, 16-bit floats as float32.

    Raises:
      ValueError: The file does not exist, is damaged, incomplete or of another kind, or needs
        torch where there is none.
    """
    path = _existing(path)
    if path.is_dir():
        names = [
            f'{stem}{suffix}'
            for stem in ('model.safetensors', 'pytorch_model.bin')
            for suffix in ('', '.index.json')
        ]
        path = next((path / name for name in names if (path / name).exists()), path)
        if path.is_dir():
            raise Refused(f'{path} holds none of {", ".join(names)}.')
    if not path.name.endswith('.index.json'):
        return _read_tensors(path)
    try:
        files = json.loads(path.read_text('utf-8'))['weight_map']  # tensor -> file beside this one
        parts = sorted({Path(file).name for file in files.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f'{path} is not an index of tensors: {error!r}.') from None
    tensors = {}
    for part in parts:
        tensors |= _read_tensors(path.with_name(part))
    if missing := sorted(files.keys() - tensors.keys()):
        raise Refused(f'{path} promises tensors that are in none of its files: {_some(missing)}.')
    return tensors


def write_huggingface(path: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Writes a `.safetensors` file that transformers loads, whole or not at all.

    Args:
      path: The file; in the folder of a model, transformers looks for 'model.safetensors'.
      tensors: As `to_huggingface` returns them.
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

    def __init__(self, shape, dtype, data, order='C', axes=None):
        dtype = dtype if isinstance(dtype, _Dtype) else _Dtype(dtype)
        array = np.frombuffer(data, dtype.dtype)
        if order == 'K':  # NumPy's for an array that is contiguous in another order of its axes
            self.array = array.reshape(shape).transpose(axes)
        else:
            self.array = array.reshape(shape, order=order)

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.__init__(shape, dtype, data, 'F' if is_fortran else 'C')


def _stand_ins() -> dict[str, Callable]:
    """What a pickle gets for each name that it may ask for."""

    def empty(*_):
        return _Array.__new__(_Array)  # a __setstate__ follows

    def from_jax(function, arguments, state, *_):
        array = empty()
        array.__setstate__(state)
        return array

    return {
        'haiku._src.data_structures.FlatMapping': dict,
        'haiku._src.data_structures.FlatMap': dict,
        'haiku._src.data_structures.frozendict': dict,
        'collections.OrderedDict': dict,
        'numpy.ndarray': _Array,
        'numpy.dtype': _Dtype,
        'numpy.core.multiarray._reconstruct': empty,
        'numpy.core.multiarray.scalar': lambda dtype, data: _Array((), dtype, data),
        'numpy.core.numeric._frombuffer': lambda data, dtype, shape, *order: _Array(
            shape, dtype, data, *order
        ),
        '_codecs.encode': lambda text, _: text.encode('latin1'),  # bytes in protocols 0 to 2
        'jax.interpreters.xla.reconstruct_device_array': from_jax,
        'jax._src.device_array.reconstruct_device_array': from_jax,
        'jax._src.array._reconstruct_array': from_jax,
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        name = f'{module.replace("numpy._core", "numpy.core")}.{name}'
        stand_ins = _stand_ins()  # made anew: what a pickle sets on one is gone with it
        if name not in stand_ins:
            raise Refused(name)
        return stand_ins[name]


class _Pickler(pickle.Pickler):
    def reducer_override(self, value):
        # NumPy's own way names a module that was called otherwise before NumPy 2.
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, value.tobytes())
        return NotImplemented


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    path = _existing(path)
    read = {'.safetensors': _read_safetensors, '.bin': _read_torch}.get(path.suffix)
    if read is None:
        raise Refused(f'{path} is neither a .safetensors nor a .bin file.')
    return {name: _widen(array) for name, array in read(path).items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:

    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, AttributeError) as error:  # the latter: a dtype that NumPy lacks
        raise Refused(f'{path} is not a safetensors file, or damaged: {error}.') from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise Refused(
            f'{path} can only be read with torch, which is not installed; a .safetensors file '
            'needs no torch.'
        ) from None
    try:
        short = (torch.float16, torch.bfloat16)  # NumPy lacks the latter
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
