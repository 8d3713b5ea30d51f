"""Runs a model with its weights on files, and prints and draws what it makes of them.

    python -m experiments.predict imagenet_conv_preprocessing.pystate cat.jpg dog.jpg
    python -m experiments.predict optical_flow_checkpoint.pystate first.png second.png
    python -m experiments.predict language_perceiver_io_bytes.pickle --text 'in [MASK*6], France'
    python -m experiments.predict video_autoencoding_checkpoint.pystate clip.mp4 --start 2.5
    python -m experiments.predict runs/io_fourier cat.jpg
    python -m experiments.predict runs/modelnet40 chair.off
    python -m experiments.predict runs/mel_video dog.mp4

MODEL is a file of DeepMind's (.pystate, .pickle), of Hugging Face's (.safetensors, .bin, or its
folder), a folder that `Pretrained.save` wrote, or the workdir of a run. It decides what to do:

  image classifier       the five likeliest classes; <stem>_attention.png, what is attended to
  point classifier       the same for a mesh (.off) or points (.npy, .txt), z upwards
  audio-visual classifier  the five likeliest classes of each sound or video, each by itself
  optical flow           from the first image to the second: <stem>_flow.flo (Middlebury),
                         <stem>_flow.png (KITTI), <stem>_flow_picture.png (colours)
  masked language model  fills in [MASK], one byte, or [MASK*6], six of them
  video autoencoder      the five likeliest classes; <stem>_reconstruction.mp4 and .png
"""

import argparse
import csv
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.errors import one_line_errors

# What is slow to import is imported where it is used: a mistake is told at once.

NUM_BEST = 5  # classes
NUM_CANDIDATES = 3  # for each masked byte
KITTI_LARGEST = 511.98  # pixels; what its files can hold


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts for each input, and prints the result."""
    arguments = parse(argv)
    for path in (*arguments.inputs, arguments.classes, arguments.ground_truth):
        if path not in (None, '-') and not Path(path).is_file():
            raise ValueError(f'{path}: there is no such file')

    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out: {out} is no folder')

    from experiments.pretrained import open_model

    model = open_model(arguments.model, best=arguments.best, conv_kernel=arguments.conv_kernel)
    run_on, options = TASKS[model.function]
    for option in ('classes', 'text', 'tiles', 'ground_truth', 'start'):
        if getattr(arguments, option) is not None and option not in options:
            raise ValueError(f'--{option} means nothing to a model for {model.function}')
    for result in run_on(model, arguments):
        print(json.dumps(result) if arguments.json else as_text(result), flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; a mistake ends with one line."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            self.exit(2, f'error: {message}; --help explains\n')

    parser = Parser(
        prog='python -m experiments.predict',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('model', metavar='MODEL', help='weights: a file, a folder or a workdir, see above')
    add(
        'inputs',
        metavar='INPUT',
        nargs='*',
        help="images, shapes, a video, text files ('-': stdin)",
    )
    add('--out', metavar='FOLDER', default='predictions', help='of the files (%(default)s)')
    add('--json', action='store_true', help='print one JSON object a line for each input')
    add(
        '--classes',
        metavar='FILE',
        help='names of the classes: one a line, or a .csv with a header and a column `name`',
    )
    add('--text', help='text to fill in, instead of INPUT')
    add(
        '--tiles',
        choices=['even', 'deepmind'],
        help="where to cut large frames: evenly (default), or as DeepMind's notebook",
    )
    add('--ground_truth', metavar='FILE', help="true flow, .flo or KITTI's .png, to compare with")
    add('--start', metavar='SECONDS', type=float, help='where in the video to begin (0)')
    add('--best', action='store_true', help="of a workdir's checkpoints the best, not the newest")
    add(
        '--conv_kernel',
        choices=['hub', 'transformers'],
        default='hub',
        help="layout of the 7x7 kernel in a file of Hugging Face's: as published (hub), or trained "
        'with transformers',
    )
    return parser.parse_args(argv)


# Images


def classify_images(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'images')
    names = class_names(model, arguments.classes)
    for path in paths:
        yield classify(model, path, arguments.out, names)


def classify(model, path: str, out: str, names: Sequence[str]) -> dict:
    """Labels one image and draws what the first cross-attends look at.

    Args:
      model: a `Pretrained` image classifier.
      path: an image.
      out: folder of the picture.
      names: of the classes.

    Returns:
      `input`, the `best` labels with their probabilities, and the `files` written.

    Raises:
      ValueError: the file is no image.
    """
    from experiments.pictures import write_attention
    from perceiver_jax.front_ends import prepare_image, read_image
    from perceiver_jax.inputs import as_images

    front_end = model.front_end
    image = prepare_image(read_image(path, channels=len(front_end['mean'])), **front_end)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    best = best_classes(model(image[None])[0], names)
    attention = {}
    for module in cross_attends(model):
        weights = np.asarray(model.attention(module, image[None])[0]).mean(0)  # of the heads
        seed = model.arguments['inputs'].get('permutation_seed')
        attention[title_of(module)] = as_images(weights, seed)
    seen = np.clip(image * front_end['std'] + front_end['mean'], 0, 1)
    picture = Path(out, f'{Path(path).stem}_attention.png')
    title = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    write_attention(picture, seen[..., 0] if seen.shape[-1] == 1 else seen, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}


def cross_attends(model) -> list[str]:
    """The first cross-attends of an encoder, those with weights of their own."""
    modules = ('encoder/cross_attend_1', 'encoder/cross_attend_2')
    return [module for module in modules if f'{module}/attention/query' in model.params]


def title_of(module: str) -> str:
    """'encoder/cross_attend_1' -> 'Cross-attend 1'."""
    return f'Cross-attend {module.rpartition("_")[-1]}'


def class_names(model, path: str | None) -> list[str]:
    """Names of a model's classes: from a file, else the model's own, else their numbers.

    Args:
      model: a `Pretrained` with `num_classes` among its arguments.
      path: a text file with one name a line, or a .csv with a header and a column `name`.

    Raises:
      ValueError: the file holds another number of names than the model has classes, or is no
        such file.
    """
    count = model.arguments['num_classes']
    if path is None:
        return list(model.classes or [f'class {i}' for i in range(count)])
    try:
        text = Path(path).read_text('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: expected UTF-8, {error.reason} at byte {error.start}') from error
    names = [line for line in text.splitlines() if line.strip()]
    if Path(path).suffix.lower() == '.csv':
        rows = csv.DictReader(names)
        if 'name' not in (rows.fieldnames or []):
            raise ValueError(f'{path}: expected a column `name`, got {rows.fieldnames}')
        names = [row['name'] for row in rows]
        if not all(names):
            raise ValueError(f'{path}: row {[*map(bool, names)].index(False) + 1} has no name')
    if len(names) != count:
        raise ValueError(f'{path}: expected the names of {count} classes, got {len(names)}')
    return names


def best_classes(logits, names: Sequence[str]) -> list[dict]:
    """The likeliest classes, the best first, with their probabilities."""
    probabilities = softmax(logits)
    if not np.isfinite(probabilities).all():
        raise ValueError('the model gives no finite logits: its weights may have diverged')
    order = np.argsort(-probabilities, kind='stable')[:NUM_BEST].tolist()
    return [{'label': names[i], 'probability': float(probabilities[i])} for i in order]


# Points


def classify_shapes(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'shapes')
    names = class_names(model, arguments.classes)
    for path in paths:
        yield classify_shape(model, path, arguments.out, names)


def classify_shape(model, path: str, out: str, names: Sequence[str]) -> dict:
    """Labels one shape and draws what the first cross-attends look at.

    Args:
      model: a `Pretrained` point classifier.
      path: a mesh, of whose surface points are drawn, or points.
      out: folder of the picture.
      names: of the classes.

    Returns:
      `input`, the `best` labels with their probabilities, and the `files` written.

    Raises:
      ValueError: the file is no shape.
    """
    from experiments.data.points import read_cloud
    from experiments.pictures import write_cloud_attention
    from perceiver_jax.front_ends import prepare_points

    num_points = model.front_end['num_points']
    encoded, rng = Path(path).read_bytes(), np.random.default_rng(0)
    points = prepare_points(read_cloud(encoded, num_points, rng, path))
    Path(out).mkdir(parents=True, exist_ok=True)
    best = best_classes(model(points[None])[0], names)
    attention = {
        title_of(module): np.asarray(model.attention(module, points[None])[0]).mean(0)
        for module in cross_attends(model)
    }
    picture = Path(out, f'{Path(path).stem}_attention.png')
    title = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    write_cloud_attention(picture, points, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}


# Flow


def flow_of_frames(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Estimates flow from the first input to the second."""
    if len(arguments.inputs) != 2:
        raise ValueError(f'INPUT: expected two images, got {len(arguments.inputs)}')
    tiles = arguments.tiles or 'even'
    yield estimate_flow(model, *arguments.inputs, arguments.out, tiles, arguments.ground_truth)


def estimate_flow(
    model, first: str, second: str, out: str, tiles: str = 'even', ground_truth: str | None = None
) -> dict:
    """Estimates flow between two frames of any size, and writes it.

    Args:
      model: a `Pretrained` for flow.
      first: an image.
      second: an image of the same size.
      out: folder of the files.
      tiles: where to cut large frames, 'even' or 'deepmind'.
      ground_truth: file of the true flow.

    Returns:
      `input`, the `files` written, and `epe` if the truth is known: the end-point error in pixels,
      averaged over the pixels where it is.

    Raises:
      ValueError: files that are no images, or of different sizes.
    """
    from experiments.data.flow_files import flow_picture, read_flow, write_flo, write_kitti_flow
    from experiments.pictures import write_flow_comparison, write_picture
    from perceiver_jax.front_ends import prepare_frames, read_image
    from perceiver_jax.tiling import tiled

    images = read_image(first), read_image(second)
    try:
        frames = prepare_frames(*images)
    except ValueError as error:
        raise ValueError(f'{first}, {second}: {error}') from error
    if ground_truth is not None:
        truth, valid = read_flow(ground_truth)
        if valid.shape != frames.shape[1:3] or not valid.any():
            raise ValueError(
                f'{ground_truth}: expected flow of {frames.shape[1:3]} pixels, '
                f'got {valid.shape}, {valid.sum()} of them valid'
            )
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
    tile = tuple(model.front_end['tile'])
    flow = tiled(model, frames, tile, placement=tiles, progress=Progress('tile'))

    stem = str(Path(out, Path(first).stem))
    write_flo(f'{stem}_flow.flo', flow)
    write_kitti_flow(f'{stem}_flow.png', flow, (np.abs(flow) <= KITTI_LARGEST).all(-1))
    write_picture(f'{stem}_flow_picture.png', flow_picture(flow))
    files = [f'{stem}_flow.flo', f'{stem}_flow.png', f'{stem}_flow_picture.png']
    result = {'input': [first, second], 'files': files}
    if ground_truth is not None:
        result['epe'] = float(np.linalg.norm(flow - truth, axis=-1)[valid].mean())
        files.append(f'{stem}_flow_comparison.png')
        write_flow_comparison(files[-1], (frames + 1) / 2, flow, truth, valid)
    return result


class Progress:
    """A line that updates in a terminal: how many are done, and when the rest will be."""

    def __init__(self, what: str):
        self.what = what
        self.start = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        left = (time.monotonic() - self.start) / done * (total - done)
        end = '\n' if done == total else ''
        print(f'\r{self.what} {done}/{total}, {left:.0f} s left ', end=end, file=sys.stderr)


# Text


def fill_in_texts(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Fills in --text, or each input."""
    if (arguments.text is None) == (not arguments.inputs):
        raise ValueError('INPUT: expected text files, or --text instead')
    if arguments.text is not None:
        yield {'input': '--text', **fill_in(model, os.fsencode(arguments.text))}
    for path in arguments.inputs:
        text = sys.stdin.buffer.read() if path == '-' else Path(path).read_bytes()
        try:
            yield {'input': path, **fill_in(model, text.removesuffix(b'\n').removesuffix(b'\r'))}
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error


def masked_tokens(text: bytes, length: int) -> np.ndarray:
    """Tokens of a text in which `[MASK]` is a masked byte, and `[MASK*6]` are six of them.

    Raises:
      ValueError: nothing is masked, or there are more than `length` bytes.
    """
    from perceiver_jax.front_ends import MASK, encode_text

    pieces = re.split(rb'\[MASK(?:\*(\d+))?\]', text)  # text, count or None, text, ...
    num_bytes = sum(map(len, pieces[::2])) + sum(int(count or 1) for count in pieces[1::2])
    if num_bytes > length:
        raise ValueError(f'the text has {num_bytes:,} bytes, and at most {length:,} fit')
    tokens = [encode_text(pieces[0])]
    for count, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        tokens += [np.full(int(count or 1), MASK, np.int32), encode_text(piece)]
    tokens = np.concatenate(tokens)
    if not (tokens == MASK).any():
        raise ValueError('nothing is masked: expected [MASK], or [MASK*6] for six bytes, in it')
    return tokens


def fill_in(model, text: bytes) -> dict:
    """Fills in the masked bytes of a text, each with the likeliest byte.

    Args:
      model: a `Pretrained` masked language model.
      text: with `[MASK]` or `[MASK*n]` in it.

    Returns:
      `text`; `marked`, with what was filled in in brackets; and `bytes`: of each, its `position`
      and the likeliest `candidates` with their probabilities.

    Raises:
      ValueError: nothing is masked, or the text is too long.
    """
    from perceiver_jax.front_ends import MASK, decode_text, encode_text, pad_tokens

    length = model.front_end['length']
    tokens = masked_tokens(text, length)
    probabilities = softmax(model(*pad_tokens([tokens], length))[0, : len(tokens)])
    masked = tokens == MASK
    bytes_ = encode_text(bytes(range(256)))  # special tokens do not belong into a text
    order = np.argsort(-probabilities[:, bytes_], kind='stable')
    filled = np.where(masked, bytes_[order[:, 0]], tokens)
    # Brackets stand between characters: what fills a part of one marks all of it.
    starts = (filled - encode_text(b'\0')[0]) & 0xC0 != 0x80  # elsewhere a character goes on
    character = np.cumsum(starts)
    marked = np.isin(character, character[masked])
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    brackets = np.tile(encode_text('[]'), len(edges) // 2)
    return {
        'text': decode_text(filled),
        'marked': decode_text(np.insert(filled, edges, brackets)),
        'bytes': [
            {
                'position': i,
                'candidates': [
                    {'byte': byte, 'probability': float(probabilities[i, bytes_[byte]])}
                    for byte in order[i, :NUM_CANDIDATES].tolist()
                ],
            }
            for i in np.flatnonzero(masked).tolist()
        ],
    }


# Video


def autoencode_clips(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Reconstructs each input."""
    paths = some_inputs(arguments.inputs, 'videos')
    names = class_names(model, arguments.classes)
    for path in paths:
        yield autoencode(model, path, arguments.out, names, arguments.start or 0.0)


def autoencode(model, path: str, out: str, names: Sequence[str], start: float = 0.0) -> dict:
    """Reconstructs a clip with its sound, and labels it.

    Args:
      model: a `Pretrained` video autoencoder.
      path: a video.
      out: folder of the files.
      names: of the classes.
      start: seconds from the beginning of the video.

    Returns:
      `input`, the `best` labels with their probabilities, and the `files` written.

    Raises:
      ValueError: the file is no video, or too short.
    """
    from experiments.pictures import write_clip_comparison
    from perceiver_jax.front_ends import prepare_clip, write_clip

    front_end = model.front_end
    rates = front_end['frames_per_second'], front_end['sample_rate']
    video, audio = prepare_clip(path, **front_end, start=start)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which takes a minute
    outputs = {name: np.asarray(value[0]) for name, value in model(video, audio).items()}
    stem = str(Path(out, f'{Path(path).stem}_reconstruction'))
    write_clip(f'{stem}.mp4', outputs['video'], outputs['audio'], *rates)
    pairs = (video[0], outputs['video']), (audio[0], outputs['audio'])
    write_clip_comparison(f'{stem}.png', *pairs, *rates, start)
    best = best_classes(outputs['label'], names)
    return {'input': path, 'best': best, 'files': [f'{stem}.mp4', f'{stem}.png']}


# Sounds, and videos with sound


def classify_clips(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'sounds or videos')
    names = class_names(model, arguments.classes)
    for path in paths:
        scores = score_clip(model, path, arguments.start or 0.0)
        order = np.argsort(-scores, kind='stable')[:NUM_BEST].tolist()
        best = [{'label': names[i], 'probability': float(scores[i])} for i in order]
        yield {'input': path, 'best': best, 'files': []}


def score_clip(model, path: str, start: float = 0.0) -> np.ndarray:
    """The probability of each class, averaged over windows that overlap by half.

    Args:
      model: a `Pretrained` audio-visual classifier.
      path: a file of sound or of video.
      start: seconds from the beginning of the file.

    Returns:
      float64 [K]; they do not sum to 1, as several classes can be there.

    Raises:
      ValueError: there is not in the file what the model takes.
    """
    from experiments.audioset import model_inputs
    from experiments.data.audioset import LEFT_OUT, read_clip
    from experiments.data.clips import ClipShape, EvalTransform
    from perceiver_jax.front_ends import read_audio

    front_end, frames = model.front_end, []
    modalities, rate = front_end['modalities'], front_end['sample_rate']
    has_video = 'video' in modalities
    if has_video:
        sound, frames, wrong = read_clip(path, start, None, with_frames=True)
        if wrong.keys() & LEFT_OUT.keys():
            raise ValueError(f'{path}: ' + '; '.join(f'{k}: {v}' for k, v in wrong.items()))
    else:
        sound = read_audio(path, rate, start).mean(1)
    shape = ClipShape(
        num_frames=front_end['num_frames'],
        frames_per_second=front_end['frames_per_second'],
        sample_rate=rate,
        size=front_end['size'] if has_video else 0,
    )
    num_frames = max(shape.num_frames, -(-len(sound) // shape.samples_per_frame))
    transform = EvalTransform(
        shape=shape,
        num_classes=model.arguments['num_classes'],
        num_windows=-(-2 * num_frames // shape.num_frames) - 1,
        clip_seconds=num_frames / shape.frames_per_second,
        crop_fraction=front_end['crop_fraction'],
    )
    example = transform({'name': path, 'sound': sound, 'frames': frames, 'labels': []})
    scores = []
    for first in example['starts'].tolist():
        heard = example['sound'][first * shape.samples_per_frame :][None, : shape.num_samples]
        seen = example['video'][None, first : first + shape.num_frames] if has_video else None
        logits = model(model_inputs(heard, seen, modalities, rate, front_end['log_mel']))
        scores.append(1 / (1 + np.exp(-np.asarray(logits[0], np.float64))))
    if not np.isfinite(scores).all():
        raise ValueError('the model gives no finite logits: its weights may have diverged')
    return np.mean(scores, axis=0)


# Of several


TASKS = {  # by function of perceiver_jax.models: what is done, and the options that it takes
    'image_classifier': (classify_images, {'classes'}),
    'point_classifier': (classify_shapes, {'classes'}),
    'optical_flow': (flow_of_frames, {'tiles', 'ground_truth'}),
    'masked_language_model': (fill_in_texts, {'text'}),
    'video_autoencoder': (autoencode_clips, {'classes', 'start'}),
    'audio_visual_classifier': (classify_clips, {'classes', 'start'}),
}


def some_inputs(paths: Sequence[str], what: str) -> Sequence[str]:
    """Refuses none, and two whose outputs would be the same file."""
    if not paths:
        raise ValueError(f'INPUT: expected {what}, got none')
    stems = [Path(path).stem for path in paths]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(f'INPUT: {stems.count(stem)} are called {stem!r}; run them apart')
    return paths


def softmax(logits) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def as_text(result: dict) -> str:
    """A result as people read it."""
    sources = result['input'] if isinstance(result['input'], list) else [result['input']]
    lines = [', '.join(sources)]
    lines += [f'  {100 * x["probability"]:5.1f} %  {x["label"]}' for x in result.get('best', ())]
    if 'epe' in result:
        lines.append(f'  end-point error {result["epe"]:.2f} px')
    if 'marked' in result:
        lines.append(re.sub(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', '\ufffd', result['marked']))
        for place in result['bytes']:
            candidates = (
                f'{repr(bytes([x["byte"]]))[1:]:>8} {100 * x["probability"]:5.1f} %'
                for x in place['candidates']
            )
            lines.append(f'  byte {place["position"]:>5,}{"".join(candidates)}')
    lines += [f'  {path}' for path in result.get('files', ())]
    return '\n'.join(lines)


def run() -> None:
    """Runs the command line."""
    sys.stdout.reconfigure(errors='backslashreplace')
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
    with one_line_errors():
        main()


if __name__ == '__main__':
    run()
