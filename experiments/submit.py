"""Estimates flow for a benchmark's test pairs, and writes it as its server wants it.

    python -m experiments.submit runs/flow sintel_final --data ~/flow_data --out sintel
    python -m experiments.submit optical_flow_checkpoint.pystate kitti2015 --data ~/flow_data

MODEL is what `experiments.predict` takes. Sintel's folder (clean/ and final/, of two calls) goes to
the bundler that comes with its data; KITTI's is to be zipped from within.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import (
    FACTORS_HELP,
    Parser,
    Progress,
    local_path,
    one_line_errors,
    run_path,
    shrinking_factors,
)
from experiments.flow.predict import flow_of_frames
from experiments.flow.sources import SUBMISSIONS, open_source, write_submission
from experiments.open_model import open_model
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import prepare_frames


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the flow of all test pairs, and says where.

    Args:
      argv: Arguments of the command line; None takes this process's own.

    Raises:
      Refused: The model is not one for flow, or the data is not where it should be.
    """
    parser = Parser(
        prog='python -m experiments.submit',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('model', metavar='MODEL', help='weights: a file, a folder or a workdir')
    parser.add_argument('benchmark', choices=SUBMISSIONS)
    parser.add_argument('--data', default='~/flow_data', help='folder of the data (%(default)s)')
    parser.add_argument('--out', default='submission', help='folder to write to (%(default)s)')
    parser.add_argument('--tiles', choices=['even', 'deepmind'], default='even')
    parser.add_argument('--factors', type=shrinking_factors, help=FACTORS_HELP)
    parser.add_argument('--best', action='store_true', help="a run's best checkpoint, not its last")
    arguments = parser.parse_args(argv)
    weights = run_path(arguments.model, 'MODEL')
    data, out = local_path(arguments.data, '--data'), local_path(arguments.out, '--out')

    source = open_source(arguments.benchmark, data, 'test')
    model = open_model(weights, best=arguments.best)
    if model.function != 'optical_flow':
        raise Refused(f'{weights} is a model for {model.function}, not for flow')
    submit(model, source, arguments.benchmark, out, arguments.tiles, arguments.factors)
    print(f'{len(source):,} files are in {out}')


def submit(
    model: Any,
    source: Any,
    benchmark: str,
    out: str | Path,
    tiles: str = 'even',
    factors: Sequence[int] | None = None,
) -> None:
    """Estimates and writes the flow of every pair of a source.

    Args:
      model: A `Pretrained` for flow.
      source: The test pairs, from `experiments.flow.sources.open_source`.
      benchmark: A key of `SUBMISSIONS`.
      out: The folder to write to.
      tiles: Where to cut large frames into tiles, 'even' or 'deepmind'; see `perceiver_jax.tiling`.
      factors: By what frames are shrunk, see `coarse_to_fine`; None: what the model's run did.
    """
    progress = Progress('pair')
    for i in range(len(source)):
        pair = source[i]
        frames = prepare_frames(*pair['frames'])
        flow = flow_of_frames(model, frames, tiles, factors)
        write_submission(out, benchmark, pair['name'], flow)
        progress(i + 1, len(source))


if __name__ == '__main__':
    with one_line_errors():
        main()
