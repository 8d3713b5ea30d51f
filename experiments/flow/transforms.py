"""What happens to one pair of frames on its way to the model: augmentation, cropping, padding.

Frames are uint8 `[2, height, width, 3]`, RGB; flow is float32 `[height, width, 2]` in pixels,
validity is bool `[height, width]`, as the sources of `experiments.flow.sources` give them.
"""

import dataclasses
import math

import cv2
import numpy as np

from experiments.data.pipeline import Batch, BrokenExample, Example
from perceiver_jax.errors import Refused
from perceiver_jax.tiling import tile_corners

# Many examples are made at once; threads within one would only fight over the cores.
cv2.setNumThreads(1)

_EDGE = 0.25  # pixels; where interpolation changes flow by more, an edge of the flow is near


def warp_pair(
    frames: np.ndarray,
    flow: np.ndarray,
    valid: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Warps the two frames by one affine map each, and returns the flow between the results.

    Flow is interpolated, but not across its edges.

    Args:
      frames: Frames, uint8 `[2, height, width, 3]`.
      flow: Flow, float32 `[height, width, 2]` in pixels.
      valid: Validity of the flow, bool `[height, width]`.
      first: Map from (x, y, 1) of the new first frame to (x, y) of the given one, `[2, 3]`.
      second: Map from (x, y, 1) of the new second frame to (x, y) of the given one, `[2, 3]`.
      size: Height and width of the new frames, h and w.

    Returns:
      New frames, uint8 `[2, h, w, 3]`; new flow, float32 `[h, w, 2]`, which may end outside the new
      second frame, as real flow does; and its validity, bool `[h, w]`, False where the first map
      leaves the given frame or the given flow is not valid.
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
    u, v = cv2.split(cv2.absdiff(smooth, nearest))
    known &= (u < _EDGE) & (v < _EDGE)
    motion = cv2.copyTo(smooth, known.astype(np.uint8), nearest)
    valid = look_up(valid.astype(np.uint8), first, cv2.INTER_NEAREST) > 0

    here = cv2.merge(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size[::-1])))
    # A pixel in the given first frame, moved to the given second frame, mapped to the new one.
    there = cv2.transform(here, first) + motion
    new_flow = cv2.transform(there, cv2.invertAffineTransform(second)) - here
    new_flow[~valid] = 0
    return np.stack(new), new_flow, valid


def inverse_flow(flow: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flow from the second frame to the first.

    At each pixel it is minus the average of all flows whose end is nearest to that pixel.

    Args:
      flow: Flow from the first frame to the second, `[height, width, 2]` in pixels.
      valid: Validity of the flow, bool `[height, width]`.

    Returns:
      The inverse flow, float32 `[height, width, 2]`, and its validity, bool `[height, width]`, True
      where any flow ends.

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
    """Changes brightness, contrast, saturation and hue in random order, equally in all frames.

    Args:
      frames: Frames, uint8 `[n, height, width, 3]`.
      rng: Random numbers.
      brightness: Largest change of the factor of brightness, either way from 1.
      contrast: Largest change of the factor of contrast, either way from 1.
      saturation: Largest change of the factor of saturation, either way from 1.
      hue: Largest turn either way, as a share of the full circle.

    Returns:
      Changed frames, uint8 `[n, height, width, 3]`.

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
        else:
            turn = round(256 * rng.uniform(-hue, hue)) % 256
            if turn:  # without a turn, the way to HSV and back would only lose accuracy
                hsv = cv2.cvtColor(tall, cv2.COLOR_RGB2HSV_FULL)
                hsv[..., 0] += np.uint8(turn)  # wraps around, as hue does
                tall = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return tall.reshape(frames.shape)


def erase(
    frame: np.ndarray, rng: np.random.Generator, sides: tuple[int, int], most: int = 2
) -> np.ndarray:
    """Fills random rectangles with the frame's mean colour, as if something occluded them.

    Args:
      frame: Frame, uint8 `[height, width, 3]`.
      rng: Random numbers.
      sides: Shortest and longest side of a rectangle in pixels.
      most: Largest number of rectangles; the smallest is one.

    Returns:
      The frame with the rectangles, uint8 `[height, width, 3]`.

    Source: RAFT's training.
    """
    height, width = frame.shape[:2]
    erased, mean = frame.copy(), cv2.mean(frame)[:3]
    for _ in range(rng.integers(1, most + 1)):
        top, left = rng.integers(height), rng.integers(width)
        rows, columns = rng.integers(sides[0], sides[1] + 1, 2)
        erased[top : top + rows, left : left + columns] = np.rint(mean)
    return erased


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Crops a pair of frames and augments it, with the flow that fits.

    `strength` multiplies all ranges and probabilities: with 0 the pair is only cropped. Frames
    smaller than the crop are enlarged to it.

    Attributes:
      crop_size: Height and width of the crop in pixels, h and w.
      strength: Strength of the augmentation, in 0..1.
      both_directions: Whether the pair in reverse is returned too; only with `strength` 0.
      brightness: Largest change of the factor of brightness, either way from 1.
      contrast: Largest change of the factor of contrast, either way from 1.
      saturation: Largest change of the factor of saturation, either way from 1.
      hue: Largest turn of hue either way, as a share of the full circle.
      asymmetric_probability: Probability that the colours of the two frames change independently.
      eraser_probability: Probability that rectangles of the second frame are filled.
      eraser_sides: Shortest and longest side of those rectangles in pixels.
      spatial_probability: Probability that the pair is scaled, stretched and rotated.
      log2_scale: Smallest and largest binary logarithm of the scale.
      stretch_probability: Probability that height and width of such a pair are also scaled
        independently; `strength` does not change it.
      log2_stretch: Largest binary logarithm of that scale, either way.
      rotation: Largest rotation of the pair in degrees, either way.
      relative_rotation: Largest rotation of the second frame against the first in degrees, either
        way.
      relative_log2_scale: Largest binary logarithm of the scale of the second frame against the
        first, either way.
      relative_translation: Largest translation of the second frame against the first, either way,
        as a share of the crop's sides.
      flip_left_right: Probability that left and right are exchanged.
      flip_up_down: Probability that top and bottom are exchanged.

    Raises:
      Refused: If `strength` is out of range, or not 0 with `both_directions`.
    """

    crop_size: tuple[int, int]
    strength: float
    both_directions: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    asymmetric_probability: float
    eraser_probability: float
    eraser_sides: tuple[int, int]
    spatial_probability: float
    log2_scale: tuple[float, float]
    stretch_probability: float
    log2_stretch: float
    rotation: float
    relative_rotation: float
    relative_log2_scale: float
    relative_translation: float
    flip_left_right: float
    flip_up_down: float

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise Refused(f'strength is in 0..1, got {self.strength}')
        if self.both_directions and self.strength:
            raise Refused(f'both directions are not augmented, got strength {self.strength}')

    def __call__(self, example: Example, rng: np.random.Generator) -> Batch:
        """Returns one training example.

        Args:
          example: 'frames', 'flow' and 'valid' as the sources give them; and 'backward', the flow
            from the second frame to the first, where it is known (without it, `both_directions`
            estimates it by `inverse_flow`).
          rng: Random numbers.

        Returns:
          'frames' uint8 `[2, h, w, 3]`, 'flow' float32 `[h, w, 2]` and 'valid' bool `[h, w]`. With
          `both_directions` each has another axis of length 2 in front: the pair, and the pair in
          reverse.
        """
        first, second = self._draw_maps(example['valid'].shape, rng)
        pair = example['frames'], example['flow'], example['valid']
        frames, flow, valid = warp_pair(*pair, first, second, self.crop_size)
        if self.both_directions:
            if 'backward' in example:  # generated scenes have it
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
        """Changes the colours of both frames, alike or independently."""
        names = ('brightness', 'contrast', 'saturation', 'hue')
        ranges = {name: self.strength * getattr(self, name) for name in names}
        if rng.random() < self.strength * self.asymmetric_probability:
            return np.concatenate([jitter_colours(x[None], rng, **ranges) for x in frames])
        return jitter_colours(frames, rng, **ranges)

    def _draw_maps(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns random maps from the crop to the first and to the second frame, `[2, 3]` each."""
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
    """Returns the matrix `[2, 2]` of a rotation, by an angle in radians."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Pads a pair of frames to one size, since a batch has one, and says where its tiles are.

    Frames are padded by repeating their last row and column; nothing is valid there. Their tiles do
    not reach into the padding, unless the frames are smaller than a tile.

    Attributes:
      frame_size: Height and width of the padded frames in pixels, H and W.
      tile: Height and width of a tile in pixels.
      placement: How tiles are placed, 'even' or 'deepmind'; see `perceiver_jax.tiling`.
      factors: By what frames are shrunk, one after the other; see `coarse_to_fine` there.
    """

    frame_size: tuple[int, int]
    tile: tuple[int, int]
    placement: str
    factors: tuple[int, ...] = (1,)

    def __call__(self, example: Example) -> Batch:
        """Returns the padded example.

        Args:
          example: 'frames', 'flow', 'valid', 'matched', 'unmatched' and 'name' as the sources give
            them, and 'data' as `Several` does.

        Returns:
          'frames' uint8 `[2, H, W, 3]`; 'flow' float32 `[H, W, 2]`; 'valid', 'matched' and
          'unmatched' bool `[H, W]`; for each factor f 'corners_f' int32 `[T, 2]`, top and left of
          the tiles, where T is the number of tiles of the largest frames; 'is_tile_f' bool `[T]`,
          False for the repetitions that smaller frames have at the end; 'size' int32 `[2]`, height
          and width before padding; and 'data' int32, unchanged.

        Raises:
          BrokenExample: The frames are larger than `frame_size`.
        """
        size = example['valid'].shape
        missing = [most - side for side, most in zip(size, self.frame_size, strict=True)]
        if min(missing) < 0:
            raise BrokenExample(
                f'{example["name"]}: frames of {size} are larger than '
                f'config.evaluation.frame_size, {tuple(self.frame_size)}'
            )
        fill = [(0, pixels) for pixels in missing]
        tiles: dict[str, np.ndarray] = {}
        for factor in {*self.factors}:
            corners = self._corners(size, factor)
            num_tiles = len(self._corners(self.frame_size, factor))
            filled = corners + (num_tiles - len(corners)) * corners[-1:]
            tiles[f'corners_{factor}'] = np.array(filled, np.int32)
            tiles[f'is_tile_{factor}'] = np.arange(num_tiles) < len(corners)
        return {
            'frames': np.pad(example['frames'], [(0, 0), *fill, (0, 0)], mode='edge'),
            'flow': np.pad(example['flow'], [*fill, (0, 0)]),
            **{name: np.pad(example[name], fill) for name in ('valid', 'matched', 'unmatched')},
            **tiles,
            'size': np.array(size, np.int32),
            'data': example['data'],
        }

    def _corners(self, size: tuple[int, int], factor: int) -> list[tuple[int, int]]:
        """Returns top and left of the tiles of shrunk frames, which may be smaller than a tile."""
        at_least_a_tile = [
            max(-(-side // factor), tile) for side, tile in zip(size, self.tile, strict=True)
        ]
        return tile_corners(at_least_a_tile, self.tile, self.placement)
