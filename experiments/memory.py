"""Says of a model that is too big for the machine what was asked for, and what there is."""

import math
import os
import re
from typing import Any

import jax

from perceiver_jax.errors import Refused

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40, 'P': 2**50, 'E': 2**60}


def check_state(train_state: Any) -> None:
    """Checks that what an update keeps fits a device, before any of it is made.

    Args:
      train_state: A `loop.TrainState` of shapes.

    Raises:
      Refused: The state and the gradients alone are larger than the memory of a device.
    """
    state, params = (
        sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (train_state, train_state.params)
    )
    there_is = memory_of_device()
    if there_is is not None and state + params > there_is:
        raise Refused(
            f'the parameters of the model, their gradients and the state of the optimizer take '
            f'{_gigabytes(state + params)}, and {jax.devices()[0].device_kind} has '
            f'{_gigabytes(there_is)}; less is needed with smaller '
            'config.model.encoder.latent_channels, num_latents and num_self_attends_per_block, and '
            'with share_blocks'
        )


def memory_of_device() -> int | None:
    """Returns the bytes of memory that the first device can use; None where nobody tells."""
    device = jax.local_devices()[0]
    if device.platform == 'cpu':
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return (device.memory_stats() or {}).get('bytes_limit')


def shortage(error: MemoryError | RuntimeError) -> str | None:
    """Says what was asked for and what there is, if an error is that of lacking memory.

    Args:
      error: What NumPy, Python or jax raised.

    Returns:
      A sentence; None for another error.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in text:
        return None
    asked = re.search(r'([\d.]+) ?([KMGTPE]?)i?(?:B\b|bytes)', text)
    what = f'{_gigabytes(float(asked[1]) * _UNITS[asked[2]])} were' if asked else 'more was'
    there_is = memory_of_device()
    has = 'does not have' if there_is is None else f'has {_gigabytes(there_is)}, some of it in use'
    return f'out of memory: {what} asked for at once, and {jax.devices()[0].device_kind} {has}'


def _gigabytes(count: float) -> str:
    return f'{count / 1e9:,.1f} GB'
