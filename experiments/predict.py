"""Runs a model with its weights on files, and prints and draws what it makes of them.

    python -m experiments.predict imagenet_conv_preprocessing.pystate cat.jpg dog.jpg
    python -m experiments.predict optical_flow_checkpoint.pystate first.png second.png
    python -m experiments.predict language_perceiver_io_bytes.pickle --text 'in [MASK*6], France'
    python -m experiments.predict video_autoencoding_checkpoint.pystate clip.mp4 --start 2.5
    python -m experiments.predict runs/io_fourier cat.jpg
    python -m experiments.predict runs/perceiver cat.jpg --attention=logits --latents=64-127
    python -m experiments.predict runs/modelnet40 chair.off
    python -m experiments.predict runs/mel_video dog.mp4

MODEL is a file of DeepMind's (.pystate, .pickle), of Hugging Face's (.safetensors, .bin, or its
folder), a folder that `Pretrained.save` wrote, or the workdir of a run. What it is a model for
decides what is done with each INPUT, printed, and written to --out:

  images       the five likeliest classes; <stem>_attention.png, what is attended to: the mean of
               the latents over the image, and some of them; with --attention=logits or --latents
               a tile for each latent, as in the Perceiver paper's figure 3 and appendix E
  shapes       the same for a mesh (.off) or points (.npy, .txt), z upwards
  sounds       the five likeliest classes of a sound, or of a video with sound
  flow         from the first image to the second: <stem>_flow.flo (Middlebury),
               <stem>_flow.png (KITTI), <stem>_flow_picture.png (colours), and with the true
               flow <stem>_flow_comparison.png
  text         fills in [MASK], one byte, or [MASK*6], six of them
  video        the five likeliest classes; <stem>_reconstruction.mp4 and .png

An INPUT that is a folder stands for the files in it, but for hidden ones. A file that cannot be
used is told, the others follow, and the exit status is 2 in the end.
"""

import argparse
import importlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from experiments.command_line import (
    FACTORS_HELP,
    Parser,
    fail,
    local_path,
    one_line_errors,
    refuse,
    run_path,
    shrinking_factors,
)
from experiments.data.hidden import visible

# Nothing slow is imported here, not even perceiver_jax: a mistake on the command line and --help
# are told at once.

TASKS = {  # function of `perceiver_jax.models` -> the task whose predict.py runs such models
    'image_classifier': 'imagenet',
    'image_baseline': 'imagenet',
    'point_classifier': 'modelnet40',
    'point_baseline': 'modelnet40',
    'optical_flow': 'flow',
    'masked_language_model': 'language',
    'video_autoencoder': 'kinetics',
    'audio_visual_classifier': 'audioset',
}
# See their OPTIONS.
OF_SOME_TASKS = 'classes attention latents text tiles factors ground_truth start'.split()


def main(arguments: argparse.Namespace) -> None:
    """Predicts for each input, and prints the results.

    Args:
      arguments: What `parse` returns.

    Raises:
      Refused: The model cannot be opened, an option is not for such models, or the inputs are not
        what its task's `predict` takes.
      SystemExit: Inputs cannot be used; each was told, and the others were predicted.
    """
    from experiments.open_model import open_model

    model = open_model(arguments.model, best=arguments.best, conv_kernel=arguments.conv_kernel)
    task = task_module(model.function)
    for option in OF_SOME_TASKS:
        if getattr(arguments, option) is not None and option not in task.OPTIONS:
            refuse(f'--{option} means nothing to a model for {model.function}')
    failed = []
    for result in task.predict(model, arguments):
        failed.append('error' in result)
        if arguments.json or not failed[-1]:
            print(json.dumps(result) if arguments.json else as_text(result), flush=True)
        if failed[-1]:
            print('error:', result['error'], file=sys.stderr)
    if any(failed):
        if len(failed) > 1:
            fail(f'{sum(failed)} of {len(failed)} inputs failed', 2)
        sys.exit(2)


def task_module(function: str) -> ModuleType:
    """Imports the predict.py of one task; those of the other tasks are left alone.

    Args:
      function: A function of `perceiver_jax.models`.

    Returns:
      A module with `predict(model, arguments)`, which yields a result for each input, or its
      `input` and the `error` where it cannot be used; and with `OPTIONS`, the names of the options
      in `OF_SOME_TASKS` that it takes.
    """
    return importlib.import_module(f'experiments.{TASKS[function]}.predict')


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and checks that its files exist; a mistake ends with one line.

    Args:
      argv: The arguments. None: those of this process.

    Returns:
      All arguments; an option that was not given is None.
    """
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
        help="images, shapes, a video, text files ('-': stdin), or a folder of them",
    )
    add('--out', metavar='FOLDER', default='predictions', help='of the files (%(default)s)')
    add('--json', action='store_true', help='print one JSON object a line for each input')
    add(
        '--classes',
        metavar='FILE',
        help='names of the classes: one a line, a .csv with a header and a column `name`, or '
        "AudioSet's class_labels_indices.csv",
    )
    add(
        '--attention',
        choices=['weights', 'logits'],
        help='of images and shapes: draw what each latent attends to (default), or the logits '
        "before the softmax as in the Perceiver paper's figure 3",
    )
    add(
        '--latents',
        metavar='LIST',
        type=_ranges,
        help='draw these latents, such as 0,5,17 or 64-127 (of images 64 with --attention=logits; '
        'else some)',
    )
    add('--text', help='text to fill in, instead of INPUT')
    add(
        '--tiles',
        choices=['even', 'deepmind'],
        help="where to cut large frames: evenly (default), or as DeepMind's notebook",
    )
    add('--factors', metavar='LIST', type=shrinking_factors, help=FACTORS_HELP)
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
    arguments = parser.parse_intermixed_args(argv)
    with one_line_errors():
        arguments.model = run_path(arguments.model, 'MODEL')
        inputs = [local_path(path, 'INPUT') for path in arguments.inputs]
        for option in ('out', 'classes', 'ground_truth'):
            if getattr(arguments, option) is not None:
                setattr(arguments, option, local_path(getattr(arguments, option), f'--{option}'))
    named = [path for path in inputs if not os.path.isdir(path)]
    for path in (*named, arguments.classes, arguments.ground_truth):
        if path not in (None, '-') and not Path(path).is_file():
            parser.exit(2, f'error: {path}: there is no such file\n')
    with one_line_errors():
        arguments.inputs = [file for path in inputs for file in files_of(path)]
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        parser.exit(2, f'error: --out: {out} is no folder\n')
    return arguments


def _ranges(text: str) -> list[range]:
    """Returns the ranges of a list such as '0,5,64-127', which includes both ends of each."""
    ranges = []
    for part in text.split(','):
        ends = re.fullmatch(r'([0-9]{1,9})(?:-([0-9]{1,9}))?', part.strip())
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            expected = 'expected latents from 0, such as 0,5,17 or 64-127'
            raise argparse.ArgumentTypeError(f'{expected}, got {text!r:.80}')
        ranges.append(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return ranges


def files_of(path: str) -> list[str]:
    """Returns the files of a folder that are not hidden, by name; or the path, if it is no folder.

    Args:
      path: An input of the command line.

    Raises:
      Refused: It is a folder without files.
    """
    if not os.path.isdir(path):
        return [path]
    found = visible(Path(path), '*')
    files = [str(file) for file in found if not file.is_dir()]
    if not files:
        refuse(f'INPUT: the folder {path} holds no files{", only folders" if found else ""}')
    if len(files) < len(found):
        warnings.warn(f'{path}: its files are read, not those of folders in it', stacklevel=2)
    return files


def as_text(result: dict) -> str:
    """Returns a result as people read it.

    Args:
      result: What the `predict` of a task yields: `input`, and some of `best`, `epe`, `marked`
        with `bytes`, and `files`.

    Returns:
      Lines: the input first.
    """
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
    """Runs the command line; a mistake of the user's is told in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
    arguments = parse()
    with one_line_errors():
        main(arguments)


if __name__ == '__main__':
    run()
