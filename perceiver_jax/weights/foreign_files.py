"""Files of weights in DeepMind's and Hugging Face's formats, read and written.

Names and layouts stay those of the file; `translation` brings them to ours and back.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, whole, write_whole
from perceiver_jax.pickles import ARRAYS, MAPPINGS, PickledArray, read_pickle
from perceiver_jax.weights.translation import recognise
from perceiver_jax.weights.trees import Arrays, Tree, flatten, list_names, nest, widen

# The files that transformers looks for in the folder of a model, in this order.
_NAMES_IN_FOLDER = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)

_ADMITTED = {*ARRAYS, *MAPPINGS}  # names that a pickle of weights may ask for


def read_deepmind(path: str | os.PathLike) -> tuple[Arrays, Arrays]:
    """Reads a file of DeepMind's release, without running anything that is in it.

    It gets dictionaries in the place of Haiku's mappings, arrays of plain numbers in the place of
    NumPy's and JAX's, and nothing else; see `read_pickle`.

    Args:
      path: A `.pystate` or `.pickle` file: a pickle of `{'params', 'state'}`, or of parameters
        alone.

    Returns:
      Parameters and state under the names and in the layouts of the file.

    Raises:
      Refused: The file does not exist, is damaged or of another kind, or its pickle asks for
        something else.
    """
    content = read_pickle(_existing(path), "a pickle of DeepMind's parameters", _ADMITTED)
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


def _is_tree(content: Any) -> bool:
    """Whether this is module name -> parameter name -> array, each with its content."""
    if not isinstance(content, dict):
        return False
    for values in content.values():
        if not isinstance(values, dict):
            return False
        if not all(isinstance(x, PickledArray) and x.is_whole for x in values.values()):
            return False
    return True


def _arrays_of(tree: dict[str, dict[str, PickledArray]]) -> Arrays:
    return {
        module: {name: value.array for name, value in values.items()}
        for module, values in tree.items()
    }


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
