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
import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from experiments.audioset.predict import classify_clips
from experiments.command_line import one_line_errors
from experiments.flow.predict import flow_of_frames
from experiments.imagenet.predict import classify_images
from experiments.kinetics.predict import autoencode_clips
from experiments.language.predict import fill_in_texts
from experiments.modelnet40.predict import classify_shapes
from perceiver_jax.errors import Refused

# What is slow to import is imported where it is used: a mistake is told at once.


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts for each input, and prints the result."""
    arguments = parse(argv)
    for path in (*arguments.inputs, arguments.classes, arguments.ground_truth):
        if path not in (None, '-') and not Path(path).is_file():
            raise Refused(f'{path}: there is no such file')

    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise Refused(f'--out: {out} is no folder')

    from experiments.open_model import open_model

    model = open_model(arguments.model, best=arguments.best, conv_kernel=arguments.conv_kernel)
    run_on, options = TASKS[model.function]
    for option in ('classes', 'text', 'tiles', 'ground_truth', 'start'):
        if getattr(arguments, option) is not None and option not in options:
            raise Refused(f'--{option} means nothing to a model for {model.function}')
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


# Points


# Flow


# Text


# Video


# Sounds, and videos with sound


# Of several


TASKS = {  # by function of perceiver_jax.models: what is done, and the options that it takes
    'image_classifier': (classify_images, {'classes'}),
    'point_classifier': (classify_shapes, {'classes'}),
    'optical_flow': (flow_of_frames, {'tiles', 'ground_truth'}),
    'masked_language_model': (fill_in_texts, {'text'}),
    'video_autoencoder': (autoencode_clips, {'classes', 'start'}),
    'audio_visual_classifier': (classify_clips, {'classes', 'start'}),
}


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
