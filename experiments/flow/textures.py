"""Random shapes, and the textures of generated scenes."""

import math
from typing import Any

import cv2
import numpy as np


def shape(rng: np.random.Generator, side: int) -> np.ndarray:
    """Returns the opacity, uint8 `[side, side]`, of a random shape that may have holes."""
    opacity = np.zeros((side, side), np.uint8)

    def fill(outline: np.ndarray, value: int) -> None:  # [points, 2] in -1..1
        points = np.rint(16 * ((outline + 1) / 2 * (side - 7) + 3)).astype(np.int32)
        cv2.fillPoly(opacity, [points], value, cv2.LINE_AA, shift=4)

    kind = rng.choice(['blob', 'polygon', 'bar'], p=[0.5, 0.35, 0.15])
    fill(_outline(rng, kind), 255)
    for _ in range(rng.integers(0, 4) if rng.random() < 0.3 else 0):
        fill(_outline(rng, 'blob') * rng.uniform(0.1, 0.3) + rng.uniform(-0.5, 0.5, 2), 0)
    return opacity


def _outline(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Returns the corners of a random shape, `[points, 2]` in -1..1."""
    if kind == 'bar':
        half = rng.uniform(0.05, 0.25)
        return np.array([[-1, -half], [1, -half], [1, half], [-1, half]])
    if kind == 'polygon':
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = rng.uniform(0.4, 1.0, len(angles))
    else:
        angles = np.linspace(0, 2 * np.pi, 97)[:-1]
        radius = np.ones_like(angles)
        for frequency in range(2, 7):
            phase = rng.uniform(0, 2 * np.pi)
            radius += rng.normal(0, 0.4 / frequency) * np.cos(frequency * angles + phase)
        radius = np.clip(radius / radius.max(), 0.05, 1)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)


def procedural_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns noise of several scales, sometimes with waves, in the colours of a random palette."""
    persistence = rng.uniform(0.4, 0.9)
    amplitude, cells = 1.0, int(rng.integers(2, 5))
    field: Any = np.zeros((2, 2), np.float32)  # float32 [rows, columns]
    while cells < max(height, width) / 2:
        rows = max(cells * height // max(height, width), 2)
        columns = max(cells * width // max(height, width), 2)
        # Each scale on its own grid: as in a pyramid, all of them cost little more than the finest.
        field = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_LINEAR)
        field += amplitude * rng.random((rows, columns), np.float32)
        amplitude *= persistence
        cells *= 2
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        angle, wave = rng.uniform(0, 2 * np.pi), 2 * np.pi / rng.uniform(6, 40)
        x = np.arange(width, dtype=np.float32) * np.float32(wave * math.cos(angle))
        y = np.arange(height, dtype=np.float32)[:, None] * np.float32(wave * math.sin(angle))
        field += rng.uniform(0.3, 1.5) * np.sin(x + y)
        if rng.random() < 0.5:  # a grid of dots
            field += rng.uniform(0.3, 1.5) * np.sin(y - x)
    levels = cv2.normalize(field, field, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    stops = np.sort(rng.integers(0, 256, rng.integers(2, 7)))
    colours = rng.uniform(0, 255, (len(stops), 3))
    if rng.random() < 0.3:  # bands with hard edges
        palette = colours[np.minimum(np.searchsorted(stops, np.arange(256)), len(stops) - 1)]
    else:
        palette = np.stack([np.interp(np.arange(256), stops, c) for c in colours.T], -1)
    return cv2.applyColorMap(levels, palette.astype(np.uint8)[:, None])
