"""Finds for each row of the papers the smallest TPU slice that holds it at the paper's batch.

python -m experiments.planning.rows               all rows on slices of TPUv3, as the papers trained
python -m experiments.planning.rows --family=v5e  on others
python -m experiments.planning.rows io_fourier    rows of this name alone

Each row is written to results/compiled/ as soon as it is known, and not compiled again while the
file is there; `make table` shows them. About two hours on two CPU cores.
"""

import importlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import Parser, one_line_errors, quiet_libraries
from experiments.data.hidden import visible
from experiments.pictures.units import size_text
from experiments.planning import targets
from experiments.results import check_types, markdown_table

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / 'results' / 'compiled'
START = 64  # devices, where the search begins: IO trained ImageNet on 64 TPUs

COLUMNS = (
    'Config', 'Batch', 'Fits in', 'A device needs', 'Evaluation', 'Exchanged', 'An update', 'With'
)  # fmt: skip

_FIELDS = {
    'config': str,
    'target': str,
    'num_devices': int,
    'batch_size': int,
    'remedy': str | None,
    'sum': int | float,
    'has': int | float,
    'evaluation': int | float,
    'collectives': dict,
    'seconds_per_step': int | float,
}

# Config and variants, in the order of the papers' tables.
ROWS = {
    'imagenet': (
        'perceiver',
        'perceiver_permuted',
        'perceiver_learned',
        *(f'perceiver,cross_attends={count}' for count in (1, 2, 4)),
        *(f'perceiver,cross_attends={count},placement=start' for count in (1, 2, 4)),
        'perceiver,placement=start',
        'perceiver,share=no',
        *(f'perceiver,cross_attends={count},self_attends=0,share=no' for count in (4, 8, 12)),
        *(
            f'{variant}{decoder}'
            for decoder in ('', ',decoder=average')
            for variant in ('io_fourier', 'io_learned', 'io_conv')
        ),
    ),
    'audioset': (
        'raw_audio',
        'mel',
        'video',
        'raw_audio_video',
        'mel_video',
        'mel_video_tuned',
        'io_raw_audio_video',
        'io_mel_video',
        'io_raw_audio_video,decoder=average',
        'io_mel_video,decoder=average',
    ),
    'modelnet40': ('perceiver',),
    'flow': (
        'main',
        'main,frames=separate',
        'main,patch=1',
        'main,patch=1,frames=separate',
        'conv',
        'conv,frames=separate',
        'conv,size=small',
    ),
}


def smallest(task: str, variant: str, family: str) -> dict[str, Any]:
    """Finds the smallest slice that holds a config as it is written.

    Only the evaluation's batch is set, where the slice has more devices than it has examples.

    Args:
      task: Name of the config file.
      variant: The variant, such as 'io_fourier,decoder=average'.
      family: Kind of TPU, a key of `targets.SLICES`.

    Returns:
      What `make_plan` returned for it; if no slice holds it, for the one that the search began at,
      with what makes it fit.
    """
    from experiments.planning.plan import make_plan

    kind = targets.SLICES[family]
    slices = [targets.find(f'{family}-{chips * kind.named}') for chips in kind.sizes]

    def plan(target: targets.Target, make_fit: bool = False) -> dict[str, Any]:
        config = importlib.import_module(f'configs.{task}').get_config(variant)
        name = f'configs/{task}.py:{variant}'
        if config.evaluation.batch_size % target.num_devices:
            config.evaluation.batch_size = target.num_devices
            name += f' --config.evaluation.batch_size={target.num_devices}'
        return make_plan(config, name, target, make_fit=make_fit)

    batch_size = importlib.import_module(f'configs.{task}').get_config(variant).train.batch_size
    slices = [x for x in slices if batch_size % x.num_devices == 0]
    at = start = next(i for i, x in enumerate(slices) if x.num_devices >= min(START, batch_size))
    plans: dict[int, dict[str, Any]] = {}
    while 0 <= at < len(slices) and at not in plans:
        plans[at] = plan(slices[at])
        if not plans[at]['fits']:
            at += 1
        elif at and _may_fit(plans[at], slices[at].num_devices / slices[at - 1].num_devices):
            at -= 1
        else:
            break
    fitting = [at for at, found in plans.items() if found['fits']]
    return plans[min(fitting)] if fitting else plan(slices[start], make_fit=True)


def _may_fit(plan: dict[str, Any], factor: float) -> bool:
    """Returns whether a batch larger by a factor may fit: temporaries grow with it, or less."""
    kept = plan['parameters'] + plan['optimizer'] + plan['program']
    return kept + 0.9 * factor * (plan['batches'] + plan['temporaries']) <= plan['has']


def file_name(task: str, variant: str, family: str) -> str:
    """Returns what the file of a row is called: 'imagenet_io_fourier_decoder_average_v3.json'."""
    return '_'.join([task, *re.findall(r'\w+', variant), family]) + '.json'


def fits_table(folder: Path = FOLDER) -> str:
    """Writes what was compiled as a table in Markdown, and below it the flags of its last column.

    Args:
      folder: The folder of the JSON files.

    Returns:
      The table, in the order of the papers' tables; then what else is in the folder.

    Raises:
      Refused: A file is no plan; names it.
    """
    order = [f'configs/{task}.py:{variant}' for task, variant in rows(())]

    def place(plan: dict[str, Any]) -> tuple[int, str, int]:
        config = plan['config'].partition(' ')[0]
        at = order.index(config) if config in order else len(order)
        return at, config, plan['num_devices']

    plans = sorted((load_plan(path) for path in visible(folder, '*.json')), key=place)
    lines: list[Sequence[str]] = []
    numbers: dict[str, int] = {}  # of the flags
    for plan in plans:
        sent = sum(found['bytes'] for found in plan['collectives'].values())
        config, _, more = plan['config'].partition(' ')
        flags = f'{more} {plan["remedy"] or ""}'.strip()
        lines.append(
            [
                f'`{config.removeprefix("configs/")}`',
                f'{plan["batch_size"]:,}',
                plan['target'],
                f'{size_text(plan["sum"])} of {size_text(plan["has"])}'.replace(' GiB of', ' of'),
                size_text(plan['evaluation']),
                size_text(sent),
                f'{plan["seconds_per_step"]:.2g} s',
                str(numbers.setdefault(flags, len(numbers) + 1)) if flags else '',
            ]
        )
    notes = [f'{number}. `{flags}`' for flags, number in numbers.items()]
    return '\n'.join([markdown_table(COLUMNS, lines), *([''] if notes else []), *notes])


def load_plan(path: Path) -> dict[str, Any]:
    """Reads a plan that fits.

    Args:
      path: What `--mode=compile --json` printed.

    Raises:
      Refused: The file is something else, or does not fit; names it.
    """
    from perceiver_jax.errors import Refused
    from perceiver_jax.files import read_json

    plan = read_json(path, 'what --mode=compile --json prints')
    check_types(path, plan, _FIELDS)
    sizes = [plan[key] for key in ('sum', 'has', 'evaluation', 'seconds_per_step')]
    sizes += [kind.get('bytes') for kind in plan['collectives'].values() if isinstance(kind, dict)]
    if len(sizes) != 4 + len(plan['collectives']) or not all(map(_is_size, sizes)):
        raise Refused(f'{path}: expected sizes and times that are numbers, from 0 on')
    return plan


def _is_size(number: Any) -> bool:
    return isinstance(number, int | float) and 0 <= number < math.inf


def rows(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields task and variant of the rows that have one of the names, of all without names.

    Args:
      names: Variants, such as 'io_fourier'.

    Raises:
      Refused: There is no such row.
    """
    known = {variant for variants in ROWS.values() for variant in variants}
    for name in names:
        if name not in known:
            from configs.common import near_misses
            from perceiver_jax.errors import Refused

            raise Refused(f'{name!r} is no row of the papers. {near_misses(name, known)}')
    for task, variants in ROWS.items():
        for variant in variants:
            if not names or variant in names:
                yield task, variant


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring.

    Args:
      arguments: Arguments of the command line; None takes this process's own.
    """
    parser = Parser(prog='python -m experiments.planning.rows', description=__doc__)
    parser.add_argument('--family', default='v3', choices=list(targets.SLICES))
    parser.add_argument('names', nargs='*')
    options = parser.parse_args(arguments)
    chosen = list(rows(options.names))
    kind = targets.SLICES[options.family]
    targets.prepare(targets.find(f'{options.family}-{max(kind.sizes) * kind.named}'))
    quiet_libraries()

    import jax

    from perceiver_jax.files import write_whole

    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, (task, variant) in enumerate(chosen, start=1):
        path = FOLDER / file_name(task, variant, options.family)
        if not path.exists():
            plan = smallest(task, variant, options.family)
            write_whole(path, json.dumps(plan, indent=2) + '\n')
            jax.clear_caches()  # programs of one row are of no use to another
            print(f'{number}/{len(chosen)} {task} {variant}: {plan["target"]}', flush=True)


if __name__ == '__main__':
    with one_line_errors():
        main()
