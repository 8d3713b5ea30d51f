"""Models on Hugging Face's hub, fetched by `huggingface_hub` and kept in its cache."""

import os
import re
from pathlib import Path

from perceiver_jax.errors import Refused

# transformers looks for these, those of safetensors first: they need no torch.
_SAFETENSORS = ['model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json']
_TORCH = ['pytorch_model.bin', 'pytorch_model-*.bin', 'pytorch_model.bin.index.json']

_NAME = re.compile(r'\w[\w.-]*/\w[\w.-]*')
_ENDINGS_OF_FILES = ('.pystate', '.pickle', '.safetensors', '.bin', '.json')


def locate(path: str | os.PathLike) -> Path:
    """Returns where weights lie on this machine, which are fetched where a name is of the hub.

    Args:
      path: A file or folder; or, where there is none, a name of exactly one slash, such as
        'deepmind/vision-perceiver-fourier'.

    Returns:
      The file or folder; of a name, the folder in the hub's cache with its weights and config.json.

    Raises:
      Refused: There is no such file, and the hub has no such name or cannot be asked.
    """
    name = os.fspath(path)
    if os.path.exists(name):
        return Path(name)
    if not _NAME.fullmatch(name) or name.endswith(_ENDINGS_OF_FILES):
        raise Refused(f'{path} does not exist.')
    neither = f"{path} does not exist as a path, and as a name on Hugging Face's hub"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise Refused(
            f'{neither} it needs huggingface_hub, which is not installed: pip install '
            'huggingface_hub, or download the folder and give its path.'
        ) from None
    try:
        folder = _fetch(snapshot_download, name, _SAFETENSORS)
        if not _has_weights(folder, _SAFETENSORS):
            folder = _fetch(snapshot_download, name, _TORCH)
    except Exception as error:  # of the network, of the disk, of the name: its own classes and more
        reason = ' '.join(str(error).split())
        raise Refused(
            f'{neither} it could not be fetched, nor is it in the cache. Is the name right, and is '
            f'this machine online? {type(error).__name__}: {reason:.200}'
        ) from error
    if not _has_weights(folder, _SAFETENSORS + _TORCH):
        raise Refused(
            f'{neither} it has no weights in {folder}: none of {", ".join(_SAFETENSORS + _TORCH)}. '
            'Where this machine was offline, try again online.'
        )
    return folder


def _fetch(snapshot_download, name: str, patterns: list[str]) -> Path:
    """Downloads what is not in the cache; offline it returns what is there."""
    return Path(snapshot_download(name, allow_patterns=['config.json', *patterns]))


def _has_weights(folder: Path, patterns: list[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
