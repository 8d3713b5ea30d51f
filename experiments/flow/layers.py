"""Layers of generated scenes: how they move, and how a frame and its flow are rendered of them.

A layer is an image with transparency, its sprite. It moves a point x of the first frame to H(D(x))
in the second: D bends, by two shears that vary across their axis, and H is a homography. Both have
an inverse in closed form. So both frames are rendered by looking up the sprite, both flows are
exact, and the nearest layer at a pixel decides what is visible there.
"""

import dataclasses
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Bend:
    """A shear along an axis that varies across it as a sine."""

    along: tuple[float, float]  # unit vector (x, y)
    amplitude: float  # pixels
    wave_number: float  # radians a pixel
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, largest: float, side: int) -> 'Bend':
        """Returns a random bend of at most `largest` pixels, for a layer with sides of `side`."""
        angle, length = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.5, 2)
        wave_number = 2 * np.pi / length
        amplitude = min(rng.uniform(0, largest), 0.3 / wave_number)  # no steeper than 0.3
        return cls(
            (math.cos(angle), math.sin(angle)), amplitude, wave_number, rng.uniform(0, 2 * np.pi)
        )

    def __call__(
        self, x: np.ndarray, y: np.ndarray, sign: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves points; `sign=-1` is the inverse."""
        (along_x, along_y), k = self.along, self.wave_number
        # Across the axis they stay where they are.
        wave = (-k * along_y) * x + ((k * along_x) * y + self.phase)
        np.sin(wave, out=wave)
        wave *= sign * self.amplitude
        return x + along_x * wave, y + along_y * wave


@dataclasses.dataclass(frozen=True)
class Layer:
    """A sprite and its motion.

    Points are arrays x and y that broadcast to one shape, in pixels of a frame.
    """

    sprite: np.ndarray  # uint8 [height, width, 4], RGB and opacity
    place: np.ndarray  # [3, 3], from the first frame to the sprite
    motion: np.ndarray  # [3, 3], from the bent first frame to the second
    bends: list[Bend]
    is_background: bool  # reflected beyond its border, instead of transparent

    def forward(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves points of the first frame to the second."""
        for bend in self.bends:
            x, y = bend(x, y)
        return _transform(self.motion, x, y)

    def backward(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves points of the second frame to the first."""
        x, y = _transform(np.linalg.inv(self.motion), x, y)
        for bend in reversed(self.bends):
            x, y = bend(x, y, -1.0)
        return x, y

    def seen(
        self, time: int, rows: slice, columns: slice
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Looks the sprite up.

        Args:
          time: 0 or 1.
          rows: Rows of frame 0 or 1, h of them.
          columns: Columns of it, w of them.

        Returns:
          Colours and opacity, uint8 `[h, w, 4]`; and by how much each pixel moves to the other
          frame, x and y, float32 `[h, w]` each.
        """
        x = np.arange(columns.start, columns.stop, dtype=np.float32)
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        other_x, other_y = self.backward(x, y) if time else self.forward(x, y)
        border = cv2.BORDER_REFLECT_101 if self.is_background else cv2.BORDER_CONSTANT
        if time and self.bends:
            at = _transform(self.place, other_x, other_y)
            picture = cv2.remap(self.sprite, *at, cv2.INTER_LINEAR, borderMode=border)
        else:
            corner = np.array([[1, 0, columns.start], [0, 1, rows.start], [0, 0, 1]])
            to_sprite = self.place @ np.linalg.inv(self.motion) if time else self.place
            picture = cv2.warpPerspective(
                self.sprite,
                to_sprite @ corner,
                (len(x), len(y)),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=border,
            )
        other_x -= x
        other_y -= y
        return picture, (other_x, other_y)

    def box(self, time: int, size: tuple[int, int]) -> tuple[slice, slice] | None:
        """Returns the rows and columns of frame 0 or 1 that the sprite may cover; None for none."""
        if self.is_background:
            return slice(0, size[0]), slice(0, size[1])
        height, width = self.sprite.shape[:2]
        t = np.linspace(0, 1, 17)
        x = np.concatenate([t, t, 0 * t, 0 * t + 1]) * (width - 1)
        y = np.concatenate([0 * t, 0 * t + 1, t, t]) * (height - 1)
        x, y = _transform(np.linalg.inv(self.place), x, y)
        if time == 1:
            x, y = self.forward(x, y)
        top, bottom = np.clip([y.min() - 2, y.max() + 3], 0, size[0]).astype(int)
        left, right = np.clip([x.min() - 2, x.max() + 3], 0, size[1]).astype(int)
        if top >= bottom or left >= right:
            return None
        return slice(top, bottom), slice(left, right)


class Fog:
    """A colour that hides layers the more distant they are, and a still haze in front of all."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self.colour = rng.uniform(120, 255, 3).astype(np.float32)
        self.density = rng.uniform(0.2, 1.5)
        haze = cv2.resize(rng.random((4, 5), np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
        self.haze = (rng.uniform(0, 0.5) * np.clip(haze, 0, 1))[..., None]

    def hide(self, picture: np.ndarray, depth: float) -> np.ndarray:
        """Mixes the fog's colour into those of a layer, uint8 `[h, w, 4]`, by its depth in 0..1."""
        share = 1 - math.exp(-self.density * depth)
        seen = np.arange(256)[:, None]
        colours = np.rint(seen + share * (self.colour - seen))
        return cv2.LUT(picture, np.hstack([colours, seen]).astype(np.uint8)[None])


def render(
    layers: list[Layer], time: int, size: tuple[int, int], exposure: float, fog: Fog | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders frame 0 or 1.

    Args:
      layers: The layers, from the farthest to the nearest.
      time: 0 or 1.
      size: Height and width of the frame, h and w.
      exposure: Length of the motion blur as a share of the motion; 0 for none.
      fog: The fog; None for none.

    Returns:
      Colours, uint8 `[h, w, 3]`; flow to the other frame, float32 `[h, w, 2]`; and the number of
      the layer that is visible at each pixel, int16 `[h, w]`.
    """
    colours = np.zeros((*size, 3), np.uint8)
    flow = np.zeros(size, np.float32), np.zeros(size, np.float32)  # x and y
    owner = np.zeros(size, np.int16)
    for number, layer in enumerate(layers):
        box = layer.box(time, size)
        if box is None:
            continue
        picture, moved = layer.seen(time, *box)
        covered = picture[..., 3] > 127
        mask = covered.view(np.uint8)
        if not cv2.countNonZero(mask):
            continue
        if fog is not None:
            picture = fog.hide(picture, 1 - number / len(layers))
        if exposure:
            path = [exposure * cv2.mean(x, mask)[0] for x in moved]
            _blend(_smear(picture, np.array(path)), colours[box])
        else:
            _paste(picture, colours[box])
        for whole, part in zip(flow, moved, strict=True):
            cv2.copyTo(part, mask, whole[box])
        np.copyto(owner[box], number, where=covered)
    if fog is not None:
        seen = colours.astype(np.float32)
        colours = np.rint(seen + fog.haze * (fog.colour - seen)).astype(np.uint8)
    return colours, cv2.merge(flow), owner


def _paste(picture: np.ndarray, onto: np.ndarray) -> None:
    """Puts what is opaque of a picture `[h, w, 4]` on colours `[h, w, 3]`, and blends its rim."""
    colours, opacity = cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB), cv2.extractChannel(picture, 3)
    if opacity.min() == 255:
        onto[:] = colours
        return
    rim = np.nonzero(cv2.inRange(opacity, 1, 254))
    share = opacity[rim][:, None] * np.float32(1 / 255)
    under = onto[rim].astype(np.float32)
    colours[rim] = np.rint(under + share * (colours[rim] - under)).astype(np.uint8)
    cv2.copyTo(colours, opacity, onto)


def _blend(picture: np.ndarray, onto: np.ndarray) -> None:
    """Puts a picture `[h, w, 4]`, whose colours are multiplied by its opacity, on others."""
    opacity = cv2.extractChannel(picture, 3)
    hidden = cv2.multiply(onto, cv2.merge([opacity, opacity, opacity]), scale=1 / 255)
    cv2.add(cv2.subtract(onto, hidden), cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB), dst=onto)


def _smear(picture: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Blurs along a straight path (x, y) in pixels; it is centred, so the flow remains exact.

    Args:
      picture: Colours and opacity, uint8 `[h, w, 4]`.
      path: The path.

    Returns:
      The mean over the path, uint8 `[h, w, 4]`, of the opacity and of colours times opacity.
    """
    opacity = cv2.extractChannel(picture, 3)
    if opacity.min() < 255:
        shares = cv2.merge([opacity, opacity, opacity, np.full_like(opacity, 255)])
        picture = cv2.multiply(picture, shares, scale=1 / 255)
    # The mean of 2, 4, 8, ... points of the path, each twice as far apart as those before.
    doublings = math.ceil(math.log2(max(math.hypot(*path), 1)))
    steps = [np.rint(path * 2**i / 2**doublings).astype(int) for i in range(doublings)]
    whole = np.sum([*steps, (0, 0)], axis=0)
    margin = int(np.abs(whole).max())
    mean = cv2.copyMakeBorder(picture, margin, margin, margin, margin, cv2.BORDER_REFLECT)
    for dx, dy in steps:
        here = mean[max(-dy, 0) : len(mean) - max(dy, 0), max(-dx, 0) : mean.shape[1] - max(dx, 0)]
        there = mean[max(dy, 0) : len(mean) + min(dy, 0), max(dx, 0) : mean.shape[1] + min(dx, 0)]
        mean = cv2.addWeighted(here, 0.5, there, 0.5, 0)
    left, top = margin - whole // 2 + np.minimum(whole, 0)
    return mean[top : top + picture.shape[0], left : left + picture.shape[1]]


def is_visible(flow: np.ndarray, owner: np.ndarray, other_owner: np.ndarray) -> np.ndarray:
    """Returns where the layer that is visible in one frame is visible in the other too."""
    x = flow[..., 0] + np.arange(owner.shape[1], dtype=np.float32)
    y = flow[..., 1] + np.arange(owner.shape[0], dtype=np.float32)[:, None]
    nearest = cv2.remap(
        other_owner, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=-1
    )
    return nearest == owner


def similarity(
    centre: tuple[float, float], target: tuple[float, float], turn: float, zoom: float
) -> np.ndarray:
    """Returns the map `[3, 3]` that rotates and scales about a point and moves it to another."""
    matrix = np.eye(3)
    matrix[:2, :2] = zoom * np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    matrix[:2, 2] = np.array(target) - matrix[:2, :2] @ centre
    return matrix


def _transform(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves points by a homography."""
    (a, b, c), (d, e, f), (g, h, i) = (matrix / matrix[2, 2]).tolist()
    x, y, depth = a * x + (b * y + c), d * x + (e * y + f), g * x + (h * y + i)
    if g or h:
        np.reciprocal(depth, out=depth)
        x *= depth
        y *= depth
    return x, y
