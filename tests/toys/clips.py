"""Sound and video for the tests of clips."""

import numpy as np


def tone(seconds, amplitude=0.5, frequency=440.0, rate=48_000):
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def as_from_a_pipe(path, size):
    """Gives a WAV file the sizes that a program writes which cannot go back to its beginning."""
    content = bytearray(path.read_bytes())
    data = content.index(b'data') + 4
    content[4:8] = content[data : data + 4] = size.to_bytes(4, 'little')
    path.write_bytes(content)


def film(seconds, size=(38, 52)):
    """Grey frames that get brighter from one to the next, at 25 a second."""
    steps = np.linspace(0.2, 0.8, round(25 * seconds), dtype=np.float32)
    return np.broadcast_to(steps[:, None, None, None], (len(steps), *size, 3))
