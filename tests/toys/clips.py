"""Sound and video for the tests of clips."""

import numpy as np


def tone(seconds, amplitude=0.5, frequency=440.0, rate=48_000):
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def film(seconds, size=(38, 52)):
    """Grey frames that get brighter from one to the next, at 25 a second."""
    steps = np.linspace(0.2, 0.8, round(25 * seconds), dtype=np.float32)
    return np.broadcast_to(steps[:, None, None, None], (len(steps), *size, 3))
