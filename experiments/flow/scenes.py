"""Generated pairs of frames with exact flow: textured shapes that move over one another.

AutoFlow's generator was never released. This one is ours, after the description in its paper (Sun
et al. 2021): layers of textured shapes under random motion, with deformation, blur, fog and noise.
"""

import functools
import math
from pathlib import Path

import cv2
import numpy as np

from experiments.data.hidden import visible
from experiments.data.pipeline import Example
from experiments.flow.layers import Bend, Fog, Layer, is_visible, render, similarity
from experiments.flow.textures import procedural_texture, shape
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
        fog = Fog(rng, self._size) if rng.random() < self._fog else None
        rendered = [render(layers, time, self._size, exposure, fog) for time in (0, 1)]
        noise = rng.uniform(0, self._noise) if rng.random() < 0.5 else 0.0
        frames = [colours for colours, _, _ in rendered]
        if noise:
            frames = [_with_grain(rng, colours, 255 * noise) for colours in frames]
        (_, flow, owner), (_, backward, other_owner) = rendered
        matched = is_visible(flow, owner, other_owner)
        return {
            'frames': np.stack(frames),
            'flow': flow,
            'valid': np.ones(self._size, bool),
            'matched': matched,
            'unmatched': ~matched,
            'backward': backward,
            'backward_matched': is_visible(backward, other_owner, owner),
            'name': f'{self._split}_{index:06d}',
        }

    def _layers(self, rng: np.random.Generator) -> list[Layer]:
        """Returns the background, and shapes from the farthest to the nearest."""
        height, width = self._size
        around = 1.3  # size of the background / size of a frame; it is reflected at its border
        texture = self._texture(rng, int(around * height), int(around * width))
        sprite = cv2.merge([texture, np.full(texture.shape[:2], 255, np.uint8)])
        middle = (width - 1) / 2, (height - 1) / 2
        place = similarity(middle, (sprite.shape[1] / 2, sprite.shape[0] / 2), 0.0, 1.0)
        camera = self._move(rng, middle, math.hypot(height, width) / 2, calm=0.5)
        layers = [Layer(sprite, place, camera, self._bends(rng, max(height, width)), True)]
        for _ in range(rng.integers(self._num_shapes[0], self._num_shapes[1] + 1)):
            # Most shapes are small; the largest span the shorter side.
            side = int(min(height, width) * rng.uniform(0.3, 1.0) ** 2) + 8
            texture = self._texture(rng, side, side)
            sprite = cv2.merge([texture, shape(rng, side)])
            centre = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
            zoom = rng.uniform(0.8, 1.25)  # interpolates in both frames, which are equally sharp
            place = similarity(centre, (side / 2, side / 2), rng.uniform(0, 2 * np.pi), zoom)
            motion = camera
            if rng.random() < 0.9:  # the others move with the background
                motion = self._move(rng, centre, side / 2)
                if rng.random() < 0.7:
                    motion = camera @ motion
            layers.append(Layer(sprite, place, motion, self._bends(rng, side), False))
        return layers

    def _texture(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Returns a random texture, uint8 `[height, width, 3]`."""
        if not self._textures:
            return procedural_texture(rng, height, width)
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
        return similarity(centre, target, turn, zoom) @ forth @ tilt @ back

    def _bends(self, rng: np.random.Generator, side: int) -> list[Bend]:
        """Returns two random bends of a layer, or none."""
        if rng.random() < 0.5:
            return []
        return [Bend.draw(rng, self._bend, side) for _ in range(2)]


@functools.lru_cache(maxsize=1)
def _grain(size: int) -> np.ndarray:
    """Returns twice as many normal numbers as an image has values: noise is a part of them."""
    return np.random.default_rng(0).standard_normal(2 * size, np.float32)


def _with_grain(rng: np.random.Generator, colours: np.ndarray, deviation: float) -> np.ndarray:
    """Adds noise to colours, uint8 `[h, w, 3]`; drawing it anew would cost as much as the rest."""
    first = rng.integers(colours.size)
    grain = _grain(colours.size)[first : first + colours.size].reshape(colours.shape)
    return cv2.add(colours, deviation * grain, dtype=cv2.CV_8U)
