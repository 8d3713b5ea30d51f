"""Generated pairs of frames with exact flow: textured shapes that move over one another.

AutoFlow's generator was never released. This one is ours, after the description in its paper (Sun
et al. 2021): layers of textured shapes under random motion, with deformation, blur, fog and noise.

A layer is an image with transparency, its sprite. It moves a point x of the first frame to H(D(x))
in the second: D bends, by two shears that vary across their axis, and H is a homography. Both have
an inverse in closed form. So both frames are rendered by looking up the sprite, both flows are
exact, and the nearest layer at a pixel decides what is visible there.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.data.hidden import visible
from experiments.data.pipeline import Example
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import read_image

# Many examples are made at once; threads within one would only fight over the cores.
cv2.setNumThreads(1)

_SPLITS = ('train', 'evaluation')
_IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png')


class MovingScenes:
    """Source of generated pairs, as `experiments.flow.sources` describes them.

    A pair depends on its index, the split and the arguments alone. Its example also has the flow
    from the second frame to the first: 'backward' float32 `[height, width, 2]`, known everywhere,
    and 'backward_matched' bool `[height, width]`, pixels of the second frame that are visible in
    the first.
    """

    def __init__(
        self,
        split: str,
        *,
        num_pairs: int,
        num_evaluation_pairs: int,
        frame_size: tuple[int, int],
        num_shapes: tuple[int, int],
        motion: float,
        turn: float,
        zoom: float,
        perspective: float,
        bend: float,
        blur: float,
        fog: float,
        noise: float,
        textures: str = '',
    ):
        """Prepares a split; its pairs are generated when they are read.

        Args:
          split: 'train' or 'evaluation'.
          num_pairs: Number of pairs of 'train'.
          num_evaluation_pairs: Number of pairs of 'evaluation'.
          frame_size: Height and width of the frames in pixels.
          num_shapes: Smallest and largest number of shapes in front of the background.
          motion: Mean length in pixels of a shape's translation; the background's is half of it.
          turn: Standard deviation of a rotation, in degrees; the background's is half of it.
          zoom: Standard deviation of the natural logarithm of a scale; the background's is half of
            it.
          perspective: Largest change of depth from the middle of a layer to its rim, as a share;
            the background's is half of it.
          bend: Largest amplitude of a bend in pixels.
          blur: Share of the scenes with motion blur.
          fog: Share of the scenes with fog.
          noise: Largest standard deviation of noise, where images are in 0..1; half of the scenes
            have none.
          textures: Folder of images to take textures from; '' generates textures.

        Raises:
          Refused: The split or a size is out of range, or the folder holds no images.
        """
        if split not in _SPLITS:
            raise Refused(f'scenes are generated for {_SPLITS}, not for {split!r}')
        count = num_pairs if split == 'train' else num_evaluation_pairs
        if count < 1 or min(frame_size) < 1 or not 0 <= num_shapes[0] <= num_shapes[1]:
            raise Refused(
                'scenes need at least one pair, a frame size, and num_shapes as (fewest, most), '
                f'got {count}, {tuple(frame_size)}, {tuple(num_shapes)}'
            )
        self._split, self._count = split, count
        self._size: tuple[int, int] = (frame_size[0], frame_size[1])
        self._num_shapes = tuple(num_shapes)
        self._motion, self._turn, self._zoom = motion, math.radians(turn), zoom
        self._perspective, self._bend = perspective, bend
        self._blur, self._fog, self._noise = blur, fog, noise
        self._textures = []
        if textures:
            folder = Path(textures).expanduser()
            files = visible(folder, '**/*')
            self._textures = [str(x) for x in files if x.suffix.lower() in _IMAGE_ENDINGS]
            if not self._textures:
                raise Refused(
                    f'config.scenes.textures: {folder} holds no images of {_IMAGE_ENDINGS}'
                )

    def __repr__(self) -> str:
        return f'generated scenes of {self._size[0]} x {self._size[1]}, {self._split}'

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(f'{self} are {self._count}, there is none of index {index}')
        rng = np.random.default_rng((index, _SPLITS.index(self._split)))
        layers = self._layers(rng)
        exposure = rng.uniform(0.2, 0.8) if rng.random() < self._blur else 0.0
        fog = _Fog(rng, self._size) if rng.random() < self._fog else None
        rendered = [_render(layers, time, self._size, exposure, fog) for time in (0, 1)]
        noise = rng.uniform(0, self._noise) if rng.random() < 0.5 else 0.0
        frames = [colours for colours, _, _ in rendered]
        if noise:
            frames = [_with_grain(rng, colours, 255 * noise) for colours in frames]
        (_, flow, owner), (_, backward, other_owner) = rendered
        matched = _is_visible(flow, owner, other_owner)
        return {
            'frames': np.stack(frames),
            'flow': flow,
            'valid': np.ones(self._size, bool),
            'matched': matched,
            'unmatched': ~matched,
            'backward': backward,
            'backward_matched': _is_visible(backward, other_owner, owner),
            'name': f'{self._split}_{index:06d}',
        }

    def _layers(self, rng: np.random.Generator) -> list['_Layer']:
        """Returns the background, and shapes from the farthest to the nearest."""
        height, width = self._size
        around = 1.3  # size of the background / size of a frame; it is reflected at its border
        texture = self._texture(rng, int(around * height), int(around * width))
        sprite = cv2.merge([texture, np.full(texture.shape[:2], 255, np.uint8)])
        middle = (width - 1) / 2, (height - 1) / 2
        place = _similarity(middle, (sprite.shape[1] / 2, sprite.shape[0] / 2), 0.0, 1.0)
        camera = self._move(rng, middle, math.hypot(height, width) / 2, calm=0.5)
        layers = [_Layer(sprite, place, camera, self._bends(rng, max(height, width)), True)]
        for _ in range(rng.integers(self._num_shapes[0], self._num_shapes[1] + 1)):
            # Most shapes are small; the largest span the shorter side.
            side = int(min(height, width) * rng.uniform(0.3, 1.0) ** 2) + 8
            texture = self._texture(rng, side, side)
            sprite = cv2.merge([texture, _shape(rng, side)])
            centre = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
            zoom = rng.uniform(0.8, 1.25)  # interpolates in both frames, which are equally sharp
            place = _similarity(centre, (side / 2, side / 2), rng.uniform(0, 2 * np.pi), zoom)
            motion = camera
            if rng.random() < 0.9:  # the others move with the background
                motion = self._move(rng, centre, side / 2)
                if rng.random() < 0.7:
                    motion = camera @ motion
            layers.append(_Layer(sprite, place, motion, self._bends(rng, side), False))
        return layers

    def _texture(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Returns a random texture, uint8 `[height, width, 3]`."""
        if not self._textures:
            return _procedural_texture(rng, height, width)
        image = read_image(self._textures[rng.integers(len(self._textures))])
        zoom = max(height / image.shape[0], width / image.shape[1], rng.uniform(0.5, 1.0))
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        image = cv2.copyMakeBorder(image, 0, 1, 0, 1, cv2.BORDER_REPLICATE)  # sizes are rounded
        top = rng.integers(image.shape[0] - height + 1)
        left = rng.integers(image.shape[1] - width + 1)
        return image[top : top + height, left : left + width]

    def _move(
        self,
        rng: np.random.Generator,
        centre: tuple[float, float],
        radius: float,
        calm: float = 1.0,
    ) -> np.ndarray:
        """Returns a random homography `[3, 3]` about a centre; `calm` scales how far it moves."""
        length = calm * min(rng.exponential(self._motion), 5 * self._motion)
        direction = rng.uniform(0, 2 * np.pi)
        target = (
            centre[0] + length * math.cos(direction),
            centre[1] + length * math.sin(direction),
        )
        turn = rng.normal(0, calm * self._turn)
        zoom = math.exp(rng.normal(0, calm * self._zoom))
        tilt = np.eye(3)
        tilt[2, :2] = rng.uniform(-1, 1, 2) * calm * self._perspective / radius / math.sqrt(2)
        forth, back = np.eye(3), np.eye(3)
        forth[:2, 2], back[:2, 2] = centre, np.negative(centre)
        return _similarity(centre, target, turn, zoom) @ forth @ tilt @ back

    def _bends(self, rng: np.random.Generator, side: int) -> list['_Bend']:
        """Returns two random bends of a layer, or none."""
        if rng.random() < 0.5:
            return []
        return [_Bend.draw(rng, self._bend, side) for _ in range(2)]


@dataclasses.dataclass(frozen=True)
class _Bend:
    """A shear along an axis that varies across it as a sine."""

    along: tuple[float, float]  # unit vector (x, y)
    amplitude: float  # pixels
    wave_number: float  # radians a pixel
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, largest: float, side: int) -> '_Bend':
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
class _Layer:
    """A sprite and its motion.

    Points are arrays x and y that broadcast to one shape, in pixels of a frame.
    """

    sprite: np.ndarray  # uint8 [height, width, 4], RGB and opacity
    place: np.ndarray  # [3, 3], from the first frame to the sprite
    motion: np.ndarray  # [3, 3], from the bent first frame to the second
    bends: list[_Bend]
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


class _Fog:
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


def _render(
    layers: list[_Layer], time: int, size: tuple[int, int], exposure: float, fog: _Fog | None
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


def _is_visible(flow: np.ndarray, owner: np.ndarray, other_owner: np.ndarray) -> np.ndarray:
    """Returns where the layer that is visible in one frame is visible in the other too."""
    x = flow[..., 0] + np.arange(owner.shape[1], dtype=np.float32)
    y = flow[..., 1] + np.arange(owner.shape[0], dtype=np.float32)[:, None]
    nearest = cv2.remap(
        other_owner, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=-1
    )
    return nearest == owner


@functools.lru_cache(maxsize=1)
def _grain(size: int) -> np.ndarray:
    """Returns twice as many normal numbers as an image has values: noise is a part of them."""
    return np.random.default_rng(0).standard_normal(2 * size, np.float32)


def _with_grain(rng: np.random.Generator, colours: np.ndarray, deviation: float) -> np.ndarray:
    """Adds noise to colours, uint8 `[h, w, 3]`; drawing it anew would cost as much as the rest."""
    first = rng.integers(colours.size)
    grain = _grain(colours.size)[first : first + colours.size].reshape(colours.shape)
    return cv2.add(colours, deviation * grain, dtype=cv2.CV_8U)


def _similarity(
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


def _shape(rng: np.random.Generator, side: int) -> np.ndarray:
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


def _procedural_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
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
