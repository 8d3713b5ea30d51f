"""Where pairs of frames with flow are read from: the official archives, unpacked, or generated.

An example is a dictionary:
  'frames': uint8 `[2, height, width, 3]`, RGB.
  'flow': float32 `[height, width, 2]`, (u, v) to the right and down, in pixels of the frames.
  'valid': bool `[height, width]`, where the flow is known; elsewhere it is 0.
  'matched', 'unmatched': bool `[height, width]`, valid pixels that are visible in the second frame,
    and that are not; both are False where the data does not tell.
  'name': str, as the benchmarks' servers name the pair, such as 'alley_1/frame_0001', '000000_10'.
"""

import bisect
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.hidden import visible
from experiments.data.pipeline import BrokenExample, Example, Source
from experiments.data.tables import read_text
from experiments.flow.files import read_flow, write_flo, write_kitti_flow
from experiments.flow.scenes import MovingScenes
from experiments.paths import folder_of_data
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import read_image

SPLITS = ('train', 'evaluation', 'test')
SUBMISSIONS = {  # data set -> the file in which its server expects the flow of a pair
    'sintel_clean': 'clean/{}.flo',
    'sintel_final': 'final/{}.flo',
    'kitti2012': '{}.png',
    'kitti2015': 'flow/{}.png',
}
_FLOW_ENDINGS = ('.flo', '.pfm', '.png')
_IMAGE_ENDINGS = ('.png', '.ppm', '.jpg', '.jpeg', '.webp')


def open_source(
    kind: str, path: str | os.PathLike, split: str, scenes: Mapping[str, Any] | None = None
) -> Source:
    """Opens one split of a data set.

    Sintel and KITTI publish the flow of their training part only. Models trained on other data are
    evaluated on it, as the field does; models trained on Sintel leave out its invalid pixels.

    Args:
      kind: Data set, which lies in the folder `path`/<name> as its official archives unpack:
        'autoflow'                     autoflow         folders with im0.png, im1.png, forward.flo
        'sintel_clean', 'sintel_final' sintel           training/{clean,final,flow,occlusions,...}
        'kitti2012', 'kitti2015'       of that name     training/{image_2,flow_occ,flow_noc}
        'flyingchairs'                 flyingchairs     <x>_img1.ppm, <x>_img2.ppm, <x>_flow.flo
        'flyingthings_clean', '_final' flyingthings3d   frames_cleanpass/TRAIN/..., optical_flow/...
        'middlebury'                   middlebury       other-data/..., other-gt-flow/...
        'pairs'                        pairs            named as FlyingChairs', in any folders; in
          train/ those to train on and in val/ those to evaluate on, or else all are for both
        Flow may be .flo, .pfm or KITTI's .png everywhere. 'scenes' are generated.
      path: Folder that holds the data sets; '~' is the home folder. Unused for 'scenes'.
      split: 'train', 'evaluation' or 'test', the pairs without flow for which the servers of Sintel
        and KITTI want it. FlyingChairs is split by FlyingChairs_train_val.txt if that is there.
      scenes: Arguments of `MovingScenes` except `split`; used for 'scenes' only.

    Returns:
      A source of examples, see the module's docstring; its `repr` says what was opened.

    Raises:
      Refused: There is no such data set or split, or a part of it is missing.
    """
    if split not in SPLITS:
        raise Refused(f'split must be one of {SPLITS}, got {split!r}')
    if kind == 'scenes':
        return MovingScenes(split, **(scenes or {}))
    if kind not in _KINDS:
        raise Refused(
            f'flow data must be one of {[*_KINDS, "scenes"]}, got {kind!r} '
            '(config.data.train, config.data.evaluate)'
        )
    name, list_pairs = _KINDS[kind]
    folder = folder_of_data(path, kind) / name
    if not folder.is_dir():
        raise Refused(f'flow data {kind!r} lies in {folder}, and there is no such folder')
    pairs = list_pairs(folder, split)
    if not pairs:
        raise Refused(f'{folder} has no pairs of frames laid out as those of {kind}, {split}')
    return _Pairs(pairs, f'{folder}, {kind}, {split}')


def write_submission(path: str | os.PathLike, kind: str, name: str, flow: np.ndarray) -> Path:
    """Writes the flow of a test pair to the file in which the benchmark's server expects it.

    Args:
      path: Folder to zip (KITTI) or to give to Sintel's bundler.
      kind: Data set, a key of `SUBMISSIONS`.
      name: Name of the pair, as the source gives it.
      flow: Flow, `[height, width, 2]` in pixels; for KITTI it is clipped to the format's range.

    Returns:
      The file.

    Raises:
      Refused: The data set has no server.
    """
    if kind not in SUBMISSIONS:
        raise Refused(f'flow is submitted for {[*SUBMISSIONS]}, not for {kind!r}')
    file = Path(path, SUBMISSIONS[kind].format(name))
    if kind.startswith('sintel'):
        write_flo(file, flow)
    else:
        write_kitti_flow(file, np.clip(flow, -512, 511.984375))
    return file


class Several:
    """Several sources, one after the other.

    Examples have another key: 'data' int32, the number of the source that they come from.

    Attributes:
      lengths: Number of examples of each source.
    """

    def __init__(self, sources: Sequence[Source]):
        """Joins sources.

        Args:
          sources: The sources, in order.
        """
        self._sources = list(sources)
        self.lengths = [len(source) for source in sources]
        self._ends = [*itertools.accumulate(self.lengths)]

    def __repr__(self) -> str:
        return ' and '.join(map(repr, self._sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        number = bisect.bisect(self._ends, index)
        example = self._sources[number][index - self._ends[number] + self.lengths[number]]
        return {**example, 'data': np.int32(number)}


class Pair(NamedTuple):
    """The files of one example; '' stands for a file that there is not.

    Attributes:
      name: Name of the pair.
      first: Image of the first frame.
      second: Image of the second frame.
      flow: File of flow.
      occluded: Image that is not black where the pixel is hidden in the second frame.
      non_occluded: File of flow that is valid only where the pixel is visible in the second frame.
      invalid: Image that is not black where the flow is not reliable.
    """

    name: str
    first: str
    second: str
    flow: str = ''
    occluded: str = ''
    non_occluded: str = ''
    invalid: str = ''


class _Pairs:
    """Source of the examples in a list of files."""

    def __init__(self, pairs: Sequence[Pair], name: str):
        self._pairs, self._name = list(pairs), name

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self._pairs[index]
        frames = [_read(read_image, file) for file in (pair.first, pair.second)]
        shape = frames[0].shape[:2]
        _check_size(pair.second, frames[1].shape[:2], shape)
        flow, valid = np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
        if pair.flow:
            flow, valid = _read(read_flow, pair.flow)
            _check_size(pair.flow, valid.shape, shape)
            if not valid.any():
                raise BrokenExample(f'{pair.flow}: its flow is not known anywhere')
        if pair.invalid:
            valid = valid & ~_mask(pair.invalid, shape)
            flow = np.where(valid[..., None], flow, 0)
        matched = unmatched = np.zeros(shape, bool)
        if pair.occluded:
            unmatched = _mask(pair.occluded, shape) & valid
            matched = valid & ~unmatched
        elif pair.non_occluded:
            visible = _read(read_flow, pair.non_occluded)[1]
            _check_size(pair.non_occluded, visible.shape, shape)
            matched, unmatched = valid & visible, valid & ~visible
        return {
            'frames': np.stack(frames),
            'flow': flow,
            'valid': valid,
            'matched': matched,
            'unmatched': unmatched,
            'name': pair.name,
        }


def _read(read: Callable, file: str) -> Any:
    """Reads a file; raises a `BrokenExample` that names it if that fails."""
    try:
        return read(file)
    except OSError as error:
        raise BrokenExample(f'{file}: {error.strerror}') from error
    except Refused as error:
        raise BrokenExample(str(error)) from error


def _mask(file: str, shape: tuple[int, int]) -> np.ndarray:
    """Returns where an image is not black, bool `[height, width]`."""
    mask = _read(lambda path: read_image(path, channels=1), file)[..., 0]
    _check_size(file, mask.shape, shape)
    return mask > 0


def _check_size(file: str, got: tuple[int, int], expected: tuple[int, int]) -> None:
    if got != expected:
        raise BrokenExample(
            f'{file}: expected {expected[1]} x {expected[0]} pixels as in its first frame, '
            f'got {got[1]} x {got[0]}'
        )


# Each of these lists the pairs of a split in the folder of a data set. Frames belong together by
# their names and numbers: by their order, a missing frame would make a pair of two frames that the
# flow does not connect.


def _autoflow(folder: Path, split: str) -> list[Pair]:
    pairs = []
    for flow in visible(folder, '**/forward.flo'):
        first, second = (str(flow.with_name(name)) for name in ('im0.png', 'im1.png'))
        pairs.append(Pair(flow.parent.relative_to(folder).as_posix(), first, second, str(flow)))
    return pairs


def _sintel(folder: Path, split: str, *, rendering: str) -> list[Pair]:
    part = folder / ('test' if split == 'test' else 'training')
    if not part.is_dir() and split != 'test':
        part = folder
    pairs: list[Pair] = []
    gaps: list[str] = []
    for sequence in (x for x in visible(part / rendering, '*') if x.is_dir()):
        frames = _by_number(sequence, 'frame_*.png')
        flows = {} if split == 'test' else _by_number(part / 'flow' / sequence.name, 'frame_*.*')
        needed = {number + 1 for number in [*frames][:-1]} | {*flows} | {n + 1 for n in flows}
        gaps += [f'{sequence.name}/frame_{number:04}' for number in needed - frames.keys()]
        for number, first in frames.items():
            second = frames.get(number + 1)
            if second is None:
                continue
            name = f'{sequence.name}/{first.stem}'
            flow = occluded = invalid = ''
            if split != 'test':
                flow = _with_ending(part / 'flow' / name, _FLOW_ENDINGS)
                occluded = _if_there(part / 'occlusions' / f'{name}.png')
            if split == 'train':
                invalid = _if_there(part / 'invalid' / f'{name}.png')
            pairs.append(
                Pair(name, str(first), str(second), flow, occluded=occluded, invalid=invalid)
            )
    _tell_gaps(part / rendering, gaps)
    return pairs


def _kitti(folder: Path, split: str, *, images: Sequence[str]) -> list[Pair]:
    """Lists pairs of the first folder of `images` that exists: colour, or else grey."""
    part = folder / ('testing' if split == 'test' else 'training')
    frames = next((part / name for name in images if (part / name).is_dir()), part / images[0])
    flows = part / 'flow_occ' if (part / 'flow_occ').is_dir() else part / 'flow'
    pairs = []
    for first in visible(frames, '*_10.png'):
        second = first.with_name(first.name.removesuffix('_10.png') + '_11.png')
        flow = non_occluded = ''
        if split != 'test':
            flow = str(flows / first.name)
            non_occluded = _if_there(part / 'flow_noc' / first.name)
        pairs.append(Pair(first.stem, str(first), str(second), flow, non_occluded=non_occluded))
    return pairs


def _named_pairs(folder: Path, split: str) -> list[Pair]:
    pairs = []
    for flow in (x for x in visible(folder, '**/*_flow.*') if x.suffix in _FLOW_ENDINGS):
        stem = flow.with_name(flow.stem.removesuffix('_flow'))
        first, second = (_with_ending(f'{stem}_img{i}', _IMAGE_ENDINGS) for i in (1, 2))
        pairs.append(Pair(stem.relative_to(folder).as_posix(), first, second, str(flow)))
    return pairs


def _own_pairs(folder: Path, split: str) -> list[Pair]:
    """Lists one's own pairs: those of train/ or val/, or all of them where there is neither."""
    parts = {'train': folder / 'train', 'evaluation': folder / 'val'}
    if split == 'test':
        return []  # no server wants their flow
    if not any(part.is_dir() for part in parts.values()):
        return _named_pairs(folder, split)
    if not parts[split].is_dir():
        raise Refused(f'{parts[split]} is missing: expected <name>_img1.png and so on in it')
    return _named_pairs(parts[split], split)


def _flyingchairs(folder: Path, split: str) -> list[Pair]:
    pairs = _named_pairs(folder, split)
    for table in visible(folder, '**/FlyingChairs_train_val.txt')[:1]:
        lines = enumerate(read_text(table).split('\n'), start=1)
        entries = [(entry, line) for line, text in lines for entry in text.split()]
        for entry, line in entries:
            if entry not in ('1', '2'):
                raise Refused(
                    f'{table}, line {line}: expected 1 (training) or 2 (validation), got '
                    f'{entry!r:.80}'
                )
        parts = [entry for entry, _ in entries]
        wanted = {'train': '1', 'evaluation': '2'}
        numbered = {_number(Path(pair.name).name): pair for pair in pairs}
        if len(numbered) != len(pairs) or not numbered.keys() <= set(range(1, len(parts) + 1)):
            raise Refused(
                f'{table}: expected 1 (training) or 2 (validation) for each of {len(pairs)} '
                f'pairs, got {len(parts)} entries, and pairs are named by their place among '
                'them, from 1'
            )
        numbers = range(1, len(parts) + 1)
        _tell_gaps(folder, [f'{number:05}' for number in numbers if number not in numbered])
        return [x for n, x in numbered.items() if n and parts[n - 1] == wanted.get(split)]
    return pairs


def _flyingthings(folder: Path, split: str, *, rendering: str) -> list[Pair]:
    part = 'TRAIN' if split == 'train' else 'TEST'
    pairs: list[Pair] = []
    gaps: list[str] = []
    for flow in visible(folder / 'optical_flow' / part, '**/OpticalFlowInto*.pfm'):
        scene = flow.parents[2].relative_to(folder / 'optical_flow')
        number = flow.stem.split('_')[1]
        step = 1 if flow.parents[1].name == 'into_future' else -1
        frames = folder / f'frames_{rendering}pass' / scene / flow.parent.name
        first = _with_ending(frames / number, _IMAGE_ENDINGS)
        second, beyond = (
            Path(first).with_stem(f'{int(number) + steps * step:0{len(number)}}')
            for steps in (1, 2)
        )
        if second.exists():
            name = flow.with_suffix('').relative_to(folder / 'optical_flow').as_posix()
            pairs.append(Pair(name, first, str(second), str(flow)))
        elif beyond.exists():  # else a scene's first or last frame, whose flow leads outside
            gaps.append(second.relative_to(folder).as_posix())
    _tell_gaps(folder, gaps)
    return pairs


def _middlebury(folder: Path, split: str) -> list[Pair]:
    pairs = []
    for flow in (x for x in visible(folder, '**/flow10.*') if x.suffix in _FLOW_ENDINGS):
        name, beside = flow.parent.name, flow.parent.parent.parent / 'other-data'
        frames = flow.parent if (flow.parent / 'frame10.png').exists() else beside / name
        first, second = (str(frames / f'frame{i}.png') for i in (10, 11))
        pairs.append(Pair(name, first, second, str(flow)))
    return pairs


def _number(stem: str) -> int | None:
    """Returns the number at the end of a name such as 'frame_0001', None where there is none."""
    found = re.search(r'(?<!\d)\d{1,9}$', stem)
    return int(found[0]) if found else None


def _by_number(folder: Path, pattern: str) -> dict[int, Path]:
    """Returns the files of a pattern by the numbers in their names, in this order."""
    numbered = [(_number(file.stem), file) for file in visible(folder, pattern)]
    return dict(sorted((number, file) for number, file in numbered if number is not None))


def _tell_gaps(folder: Path, missing: Sequence[str]) -> None:
    """Tells in one line that files are missing, and their pairs left out."""
    if missing := sorted(set(missing)):
        more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
        logging.warning(
            '%s lacks %s%s: pairs that need them are left out', folder, ', '.join(missing[:5]), more
        )


def _if_there(file: Path) -> str:
    return str(file) if file.exists() else ''


def _with_ending(stem: str | Path, endings: Sequence[str]) -> str:
    """Returns the file of that name with one of the endings."""
    for ending in endings:
        if os.path.exists(f'{stem}{ending}'):
            return f'{stem}{ending}'
    raise Refused(f'{stem} is missing: expected it with one of the endings {endings}')


_KINDS: dict[str, tuple[str, Callable[[Path, str], list[Pair]]]] = {
    # kind -> the name of its folder, and the function (folder, split) -> its pairs
    'autoflow': ('autoflow', _autoflow),
    'sintel_clean': ('sintel', functools.partial(_sintel, rendering='clean')),
    'sintel_final': ('sintel', functools.partial(_sintel, rendering='final')),
    'kitti2012': ('kitti2012', functools.partial(_kitti, images=('colored_0', 'image_0'))),
    'kitti2015': ('kitti2015', functools.partial(_kitti, images=('image_2',))),
    'flyingchairs': ('flyingchairs', _flyingchairs),
    'flyingthings_clean': ('flyingthings3d', functools.partial(_flyingthings, rendering='clean')),
    'flyingthings_final': ('flyingthings3d', functools.partial(_flyingthings, rendering='final')),
    'middlebury': ('middlebury', _middlebury),
    'pairs': ('pairs', _own_pairs),
}
