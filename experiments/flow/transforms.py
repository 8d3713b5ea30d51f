"""What happens to one pair of frames with flow: changes of place and colour, with the flow's.

Frames are uint8 [2, height, width, 3]; flow float32 [height, width, 2] in pixels, validity bool
[height, width], as the sources of `experiments.flow.sources` give them.
"""

import dataclasses
import math

import cv2
import numpy as np

from experiments.data.pipeline import BrokenExample
from perceiver_jax.errors import Refused
from perceiver_jax.tiling import tile_corners

# Many examples are made at once; threads within one would only fight over the cores.
cv2.setNumThreads(1)

_EDGE = 0.25  # pixels: where interpolation changes flow by more, an edge of it is near


def warp_pair(
    frames: np.ndarray,
    flow: np.ndarray,
    valid: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps either frame by a map of its own, and gives the flow between what comes out.

    Args:
      frames: uint8 [2, height, width, 3].
      flow: float32 [height, width, 2], pixels.
      valid: bool [height, width].
      first: [2, 3], from (x, y, 1) of the new first frame to (x, y) of the given one.
      second: the same of the second frame.
      size: height and width of what comes out.

    Returns:
      Frames and flow of that size, and its validity: false where the first frame shows nothing or
      its flow is not known. Flow may end outside the new second frame, as real flow does. It is
      interpolated, but not across its edges.
    """

    def look_up(values, matrix, flags):
        return cv2.warpAffine(values, matrix, size[::-1], flags=flags | cv2.WARP_INVERSE_MAP)

    new = [
        look_up(frame, matrix, cv2.INTER_LINEAR)
        for frame, matrix in zip(frames, (first, second), strict=True)
    ]
    smooth = look_up(flow, first, cv2.INTER_LINEAR)
    nearest = look_up(flow, first, cv2.INTER_NEAREST)
    known = look_up(valid.astype(np.float32), first, cv2.INTER_LINEAR) > 0.999
    known &= (np.abs(smooth - nearest) < _EDGE).all(-1)
    motion = np.where(known[..., None], smooth, nearest)
    valid = look_up(valid.astype(np.uint8), first, cv2.INTER_NEAREST) > 0

    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size[::-1]))
    # Where the pixel is in the given second frame, then in the new one.
    there = cv2.merge([x, y]) @ first[:, :2].T.astype(np.float32) + first[:, 2].astype(np.float32)
    back = cv2.invertAffineTransform(second).astype(np.float32)
    new_flow = (there + motion) @ back[:, :2].T + back[:, 2] - cv2.merge([x, y])
    new_flow[~valid] = 0
    return np.stack(new), new_flow, valid


def inverse_flow(flow: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The flow back: at each pixel, minus the average of all flows that end at it.

    Args:
      flow: [height, width, 2], pixels; it ends at the pixel that is nearest.
      valid: bool [height, width].

    Returns:
      flow float32 [height, width, 2], and bool [height, width], where any flow ended.

    Source: Perceiver IO, appendix H.
    """
    height, width = valid.shape
    y, x = np.nonzero(valid)
    u, v = flow[y, x].T
    x, y = np.rint(x + u).astype(np.int64), np.rint(y + v).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = (y * width + x)[inside]
    count = np.bincount(at, minlength=height * width)
    sums = [np.bincount(at, weights=w[inside], minlength=height * width) for w in (u, v)]
    inverse = -np.stack(sums, -1) / np.maximum(count, 1)[:, None]
    return inverse.reshape(height, width, 2).astype(np.float32), (count > 0).reshape(height, width)


def jitter_colours(
    frames: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, in random order, of all frames alike.

    Args:
      frames: uint8 [n, height, width, 3].
      rng: random numbers.
      brightness, contrast, saturation: largest change of the factor, which is drawn about 1.
      hue: largest turn either way, in parts of the circle.

    Source: torchvision's ColorJitter, which RAFT trains with.
    """
    count, height, width, _ = frames.shape
    tall = frames.reshape(count * height, width, 3)
    levels = np.arange(256, dtype=np.float32)

    def as_table(values):
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    for change in rng.permutation(4):
        if change == 0:
            tall = cv2.LUT(tall, as_table(levels * rng.uniform(1 - brightness, 1 + brightness)))
        elif change == 1:
            mean = cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY).mean()
            factor = rng.uniform(1 - contrast, 1 + contrast)
            tall = cv2.LUT(tall, as_table(mean + factor * (levels - mean)))
        elif change == 2:
            factor = rng.uniform(1 - saturation, 1 + saturation)
            grey = cv2.cvtColor(cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            tall = cv2.addWeighted(tall, factor, grey, 1 - factor, 0)
        elif turn := round(256 * rng.uniform(-hue, hue)) % 256:  # there and back costs accuracy
            hsv = cv2.cvtColor(tall, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(turn)  # wraps around, as hue does
            tall = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return tall.reshape(frames.shape)


def erase(
    frame: np.ndarray, rng: np.random.Generator, sides: tuple[int, int], most: int = 2
) -> np.ndarray:
    """Fills one to `most` rectangles with the frame's mean colour: what is there is occluded.

    Args:
      frame: uint8 [height, width, 3].
      rng: random numbers.
      sides: shortest and longest side of a rectangle, pixels.
      most: rectangles.

    Source: RAFT's training.
    """
    height, width = frame.shape[:2]
    erased, mean = frame.copy(), frame.mean((0, 1))
    for _ in range(rng.integers(1, most + 1)):
        top, left = rng.integers(height), rng.integers(width)
        rows, columns = rng.integers(sides[0], sides[1] + 1, 2)
        erased[top : top + rows, left : left + columns] = np.rint(mean)
    return erased


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """(example, random numbers) -> {'frames' uint8 [2, h, w, 3], 'flow' [h, w, 2], 'valid' [h, w]}.

    `strength` multiplies all ranges and probabilities: with 0 the pair is only cropped. With
    `both_directions` each array has another axis in front: the pair, and the pair in reverse.
    Frames smaller than the crop are enlarged to it.
    """

    crop_size: tuple[int, int]  # h, w
    strength: float  # 0..1
    both_directions: bool
    brightness: float  # largest change of the factors
    contrast: float
    saturation: float
    hue: float  # in parts of the circle
    asymmetric_probability: float  # of colours that change in either frame differently
    eraser_probability: float
    eraser_sides: tuple[int, int]  # pixels
    spatial_probability: float
    log2_scale: tuple[float, float]
    stretch_probability: float
    log2_stretch: float  # either way, of height and width apart
    rotation: float  # degrees, either way
    relative_rotation: float  # of the second frame against the first: degrees,
    relative_log2_scale: float
    relative_translation: float  # and parts of the crop's sides
    flip_left_right: float  # probabilities
    flip_up_down: float

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise Refused(f'strength is in 0..1, got {self.strength}')
        if self.both_directions and self.strength:
            raise Refused(f'both directions are not augmented, got strength {self.strength}')

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        first, second = self._draw_maps(example['valid'].shape, rng)
        pair = example['frames'], example['flow'], example['valid']
        frames, flow, valid = warp_pair(*pair, first, second, self.crop_size)
        if self.both_directions:
            if 'backward' in example:  # known for generated scenes
                backward, known = example['backward'], np.ones_like(example['valid'])
            else:
                backward, known = inverse_flow(example['flow'], example['valid'])
            reverse = warp_pair(
                example['frames'][::-1], backward, known, second, first, self.crop_size
            )
            frames, flow, valid = (
                np.stack(both) for both in zip((frames, flow, valid), reverse, strict=True)
            )
        elif self.strength:
            frames = self._change_colours(frames, rng)
            if rng.random() < self.strength * self.eraser_probability:
                frames = np.stack([frames[0], erase(frames[1], rng, self.eraser_sides)])
        return {'frames': frames, 'flow': flow, 'valid': valid}

    def _change_colours(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        names = ('brightness', 'contrast', 'saturation', 'hue')
        ranges = {name: self.strength * getattr(self, name) for name in names}
        if rng.random() < self.strength * self.asymmetric_probability:
            return np.concatenate([jitter_colours(x[None], rng, **ranges) for x in frames])
        return jitter_colours(frames, rng, **ranges)

    def _draw_maps(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """From the crop to either frame, [2, 3] each."""
        strength, sides = self.strength, np.array(self.crop_size[::-1])  # x before y from here on
        room = np.array(size[::-1])
        scale, turn = np.ones(2), 0.0
        if rng.random() < strength * self.spatial_probability:
            scale *= 2.0 ** (strength * rng.uniform(*self.log2_scale))
            if rng.random() < self.stretch_probability:
                scale *= 2.0 ** (strength * rng.uniform(-1, 1, 2) * self.log2_stretch)
            turn = math.radians(strength * rng.uniform(-1, 1) * self.rotation)
        scale = np.maximum(scale, max(sides / room))  # what is cropped lies within the frame
        flips = rng.random(2) < strength * np.array([self.flip_left_right, self.flip_up_down])
        linear = _rotation(turn) @ np.diag(np.where(flips, -1, 1) / scale)

        middle = (sides - 1) / 2
        reach = middle / scale
        centre = rng.uniform(np.minimum(reach, (room - 1) / 2), np.maximum(room - 1 - reach, reach))
        if (scale == 1).all() and turn == 0:  # no need to interpolate
            centre = np.rint(centre - middle) + middle
        first = np.column_stack([linear, centre - linear @ middle])

        relative = strength * rng.uniform(-1, 1, 4)
        own = _rotation(math.radians(relative[0] * self.relative_rotation))
        own = own * 2.0 ** (relative[1] * self.relative_log2_scale)
        shift = relative[2:] * self.relative_translation * sides
        own = np.column_stack([own, middle + shift - own @ middle])
        second = first @ np.vstack([own, [0, 0, 1]])
        return first, second


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """An example filled up to one size, since a batch has one, and where its tiles are.

    Example -> {'frames' uint8 [2, H, W, 3], 'flow' [H, W, 2], 'valid', 'matched', 'unmatched'
    [H, W], 'corners' int32 [T, 2], top and left of the tiles of the frames as they were, 'is_tile'
    bool [T], 'data' int32}. Frames are filled up with their last row and column, where nothing is
    valid; their tiles do not reach there, unless the frames are smaller than a tile.
    """

    frame_size: tuple[int, int]  # H, W
    tile: tuple[int, int]
    placement: str  # 'even' or 'deepmind'

    def __call__(self, example: dict) -> dict[str, np.ndarray]:
        size = example['valid'].shape
        missing = [most - side for side, most in zip(size, self.frame_size, strict=True)]
        if min(missing) < 0:
            raise BrokenExample(
                f'{example["name"]}: frames of {size} are larger than '
                f'config.evaluation.frame_size, {tuple(self.frame_size)}'
            )
        fill = [(0, pixels) for pixels in missing]
        corners = self._corners(size)
        num_tiles = len(self._corners(self.frame_size))
        filled = corners + (num_tiles - len(corners)) * corners[-1:]
        return {
            'frames': np.pad(example['frames'], [(0, 0), *fill, (0, 0)], mode='edge'),
            'flow': np.pad(example['flow'], [*fill, (0, 0)]),
            **{name: np.pad(example[name], fill) for name in ('valid', 'matched', 'unmatched')},
            'corners': np.array(filled, np.int32),
            'is_tile': np.arange(num_tiles) < len(corners),
            'data': example['data'],
        }

    def _corners(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        size = [max(side, tile) for side, tile in zip(size, self.tile, strict=True)]
        return tile_corners(size, self.tile, self.placement)
