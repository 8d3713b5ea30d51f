"""How much a file may take, checked before memory is allocated and before a loop begins.

A small file can ask for much: by a number in its header, or because what it holds compresses well.
The bounds are far above what data and models need; our choice: deviations.md#limits. The
environment variable PERCEIVER_JAX_LIMITS is a factor, 1 by default, that widens all of them, also
in worker processes.
"""

import math
import os

from perceiver_jax.errors import Refused

BYTES = 2**30  # of memory for what a file holds, or for a table of a model
BYTES_PER_BYTE = 100  # of a larger file: that much for each of its bytes
PIXELS = 2**28  # of an image, or of a frame of a video
SAMPLE_RATES = (100, 10_000_000)  # Hz, of sound in a file: lowest, highest
STEPS = 2000  # of building a model: its layers, the pixels of a patch
_VARIABLE = 'PERCEIVER_JAX_LIMITS'


def factor() -> float:
    """Returns the factor of the environment, 1 where it has none.

    Raises:
      Refused: It is no number above 0.
    """
    text = os.environ.get(_VARIABLE, '1')
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise Refused(f'{_VARIABLE} is {text!r:.80}, it must be a number above 0')
    return value


def check_bytes(what: str, needed: float, file_bytes: float = 0) -> None:
    """Checks how much memory something would take.

    Args:
      what: What would take it, for the message.
      needed: Bytes of memory.
      file_bytes: Size of the file that it comes from: large files may take more.

    Raises:
      Refused: It would take more than is allowed.
    """
    most = factor() * max(BYTES, BYTES_PER_BYTE * file_bytes)
    if not needed <= most:
        _refuse(f'{what} would take {_shown(needed)} bytes of memory', f'at most {_shown(most)}')


def check_pixels(what: str, *sides: int) -> None:
    """Checks the size of an image.

    Args:
      what: The image, for the message.
      *sides: Its two sides in pixels.

    Raises:
      Refused: It has more pixels than are allowed.
    """
    most = factor() * PIXELS
    if math.prod(sides) > most:
        shown = ' x '.join(map(_shown, sides))
        _refuse(f'{what} has {shown} pixels', f'at most {_shown(most)} in all')


def check_sample_rate(rate: float) -> None:
    """Checks the sample rate of sound in a file, which is to be resampled.

    Args:
      rate: The sample rate in Hz.

    Raises:
      Refused: It is beyond the bounds.
    """
    low, high = SAMPLE_RATES[0] / factor(), SAMPLE_RATES[1] * factor()
    if not low <= rate <= high:
        _refuse(f'its sound has a sample rate of {_shown(rate)} Hz', f'{low:,.0f} to {high:,.0f}')


def check_steps(what: str, number: int) -> None:
    """Checks a number that a model is built by: each of these is traced by itself.

    Args:
      what: What the steps are, for the message.
      number: How many there are.

    Raises:
      Refused: There are more than are allowed.
    """
    most = factor() * STEPS
    if number > most:
        _refuse(f'there are {_shown(number)} {what}', f'at most {_shown(most)}')


def _shown(number: float) -> str:
    return f'{round(number):,}' if number < 10**18 else 'more than 10**18'


def _refuse(what: str, allowed: str) -> None:
    raise Refused(f'{what}, expected {allowed}; {_VARIABLE}, a factor, widens the limits')
