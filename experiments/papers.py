"""The tables of the two papers on tasks that are here, and which config builds each row.

python -m experiments.papers   describes all models and rewrites results/described/, in minutes

`experiments.table` writes the tables to docs/tables.md. What a config states of its paper comes
from the config. Figures that are written here are those of models that no config builds, and of
columns that no config states.
"""

import importlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command_line import Parser, one_line_errors
from experiments.data.hidden import visible
from experiments.pictures.units import metric_text, scores_text
from experiments.planning.rows import load_plan
from experiments.results import check_types, markdown_table
from experiments.training.describe import short
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, write_whole

FOLDER = Path(__file__).resolve().parent.parent / 'results' / 'described'
COLUMNS = ('Config', 'Parameters', 'FLOPs', 'Fits in', 'Trained here')
OUR_COLUMNS = ('Config', 'Data', 'Parameters', 'FLOPs')
FIELDS = {'parameters': int, 'forward_flops': int}
CLASSES = 10  # of a model that takes their number from the data
VALUE = '{value}'


class Row(NamedTuple):
    """A model in a table.

    Attributes:
      cells: The table's own columns; `{value}` is the headline metric that the config states, and
        `{sintel_clean}` and the like are the errors of optical flow.
      variant: The variant of the table's config file; '': no config builds the model.
      parameters: What the paper states of a model without a config, as printed.
      flops: The same.
    """

    cells: tuple[str, ...]
    variant: str = ''
    parameters: str = '-'
    flops: str = '-'


class Table(NamedTuple):
    """A table.

    Attributes:
      task: Name of the config file of its rows.
      columns: Its own columns, before those that all tables have.
      rows: The rows.
    """

    task: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


_FLOW = ('{sintel_clean}', '{sintel_final}', '{kitti2015}')

PAPERS = {
    'ICML table 1': Table(
        'imagenet',
        ('Model', 'Top-1'),
        (
            Row(('ResNet-50', VALUE), 'resnet50'),
            Row(('ViT-B-16', VALUE), 'vit_b16'),
            Row(('ResNet-50 (FF)', VALUE), 'resnet50,features=fourier'),
            Row(('ViT-B-16 (FF)', VALUE), 'vit_b16,features=fourier'),
            Row(('Transformer (64x64, FF)', VALUE), 'transformer'),
            Row(('Perceiver (FF)', VALUE), 'perceiver'),
        ),
    ),
    'ICML table 2': Table(
        'imagenet',
        ('Model', 'Raw', 'Permuted', 'Input RF'),
        (
            Row(('ResNet-50 (FF)', VALUE, '', '49'), 'resnet50,features=fourier'),
            Row(('', '', VALUE, ''), 'resnet50,features=fourier,permuted=yes'),
            Row(('ViT-B-16 (FF)', VALUE, '', '256'), 'vit_b16,features=fourier'),
            Row(('', '', VALUE, ''), 'vit_b16,features=fourier,permuted=yes'),
            Row(('Transformer (64x64, FF)', VALUE, '', '4,096'), 'transformer'),
            Row(('', '', VALUE, ''), 'transformer,permuted=yes'),
            Row(('Perceiver (FF)', VALUE, '', '50,176'), 'perceiver'),
            Row(('', '', VALUE, ''), 'perceiver_permuted'),
            Row(('Perceiver (learned positions)', VALUE, '', '50,176'), 'perceiver_learned'),
            Row(('', '', VALUE, ''), 'perceiver_learned,permuted=yes'),
        ),
    ),
    'ICML table 3': Table(
        'audioset',
        ('Model', 'Audio', 'Video', 'Both'),
        (
            Row(('Benchmark', '31.4 %', '-', '-')),
            Row(('Attention', '32.7 %', '-', '-')),
            Row(('Multi-level attention', '36.0 %', '-', '-')),
            Row(('ResNet-50', '38.0 %', '-', '-')),
            Row(('CNN-14', '43.1 %', '-', '-')),
            Row(('CNN-14 without balancing and mixup', '37.5 %', '-', '-')),
            Row(('G-blend', '32.4 %', '18.8 %', '41.8 %')),
            Row(('Attention AV-fusion', '38.4 %', '25.7 %', '46.2 %')),
            Row(('Perceiver, raw audio', VALUE, '', ''), 'raw_audio'),
            Row(('', '', VALUE, ''), 'video'),
            Row(('', '', '', VALUE), 'raw_audio_video'),
            Row(('Perceiver, mel-spectrogram', VALUE, '', ''), 'mel'),
            Row(('', '', VALUE, ''), 'video'),
            Row(('', '', '', VALUE), 'mel_video'),
            Row(('Perceiver, mel-spectrogram, tuned', '-', '-', VALUE), 'mel_video_tuned'),
        ),
    ),
    'ICML table 4': Table(
        'modelnet40',
        ('Model', 'Accuracy'),
        (
            Row(('PointNet++', '91.9 %')),
            Row(('ResNet-50 (FF)', VALUE), 'resnet50'),
            Row(('ViT-B-2 (FF)', VALUE), 'vit_b2'),
            Row(('ViT-B-4 (FF)', VALUE), 'vit_b4'),
            Row(('ViT-B-8 (FF)', VALUE), 'vit_b8'),
            Row(('ViT-B-16 (FF)', VALUE), 'vit_b16'),
            Row(('Transformer (44x44)', VALUE), 'transformer'),
            Row(('Perceiver', VALUE), 'perceiver'),
        ),
    ),
    'ICML table 5': Table(
        'imagenet',
        ('Cross-attends', 'Top-1'),
        (
            Row(('4', VALUE), 'perceiver,cross_attends=4,self_attends=0,share=no'),
            Row(('8', VALUE), 'perceiver,cross_attends=8,self_attends=0,share=no'),
            Row(('12', 'out of memory'), 'perceiver,cross_attends=12,self_attends=0,share=no'),
        ),
    ),
    'ICML table 6': Table(
        'imagenet',
        ('Cross-attends', 'Top-1'),
        (
            Row(('1 (at start)', VALUE), 'perceiver,cross_attends=1,placement=start'),
            Row(('1 (interleaved)', VALUE), 'perceiver,cross_attends=1'),
            Row(('2 (at start)', VALUE), 'perceiver,cross_attends=2,placement=start'),
            Row(('2 (interleaved)', VALUE), 'perceiver,cross_attends=2'),
            Row(('4 (at start)', VALUE), 'perceiver,cross_attends=4,placement=start'),
            Row(('4 (interleaved)', VALUE), 'perceiver,cross_attends=4'),
            Row(('8 (at start)', VALUE), 'perceiver,placement=start'),
            Row(('8 (interleaved)', VALUE), 'perceiver'),
        ),
    ),
    'ICML table 7': Table(
        'imagenet',
        ('Weights', 'Top-1', 'Top-1 in training'),
        (
            Row(('not shared', VALUE, '87.7 %'), 'perceiver,share=no'),
            Row(('shared', VALUE, '79.5 %'), 'perceiver'),
        ),
    ),
    'IO table 3': Table(
        'flow',
        ('Method', 'Patch', 'Concat.', 'Downs.', 'Depth', 'Latents', 'Clean', 'Final', 'KITTI'),
        (
            Row(('PWCNet', '-', '-', '-', '-', '-', '2.17 px', '2.91 px', '5.76 px')),
            Row(('RAFT', '-', '-', '-', '-', '-', '1.95 px', '2.57 px', '4.23 px')),
            Row(('Perceiver IO', '3x3', 'yes', 'no', '24', '2,048', *_FLOW), 'main'),
            Row(('', '3x3', 'no', 'no', '24', '2,048', *_FLOW), 'main,frames=separate'),
            Row(('', '1x1', 'yes', 'no', '24', '2,048', *_FLOW), 'main,patch=1'),
            Row(('', '1x1', 'no', 'no', '24', '2,048', *_FLOW), 'main,patch=1,frames=separate'),
            Row(('', 'conv', 'yes', 'yes', '24', '2,048', *_FLOW), 'conv'),
            Row(('', 'conv', 'no', 'yes', '24', '2,048', *_FLOW), 'conv,frames=separate'),
            Row(('', 'conv', 'yes', 'yes', '16', '1,024', *_FLOW), 'conv,size=small'),
        ),
    ),
    'IO table 7': Table(
        'imagenet',
        ('Model', 'Pretrained', 'Top-1'),
        (
            Row(('ResNet-50', 'no', '78.6 %'), '', '26M', '4.1B'),
            Row(('NFNet-F6+SAM', 'no', '86.5 %'), '', '438.4M', '377.3B'),
            Row(('Meta Pseudo Labels', 'yes', '90.2 %'), '', '480M'),
            Row(('ViT-B/16', 'no', '77.9 %'), '', '86M', '55.4B'),
            Row(('ViT-H/14', 'yes', '88.6 %'), '', '632M'),
            Row(('DeiT, 1,000 epochs', 'no', '85.2 %'), '', '87M'),
            Row(('CaiT-M48, 448x448', 'no', '86.5 %'), '', '356M', '329.6B'),
            Row(('Perceiver (2D FF)', 'no', VALUE), 'io_fourier,decoder=average'),
            Row(('Perceiver IO, A (2D FF)', 'no', VALUE), 'io_fourier'),
            Row(('Perceiver IO, B (2D FF)', 'JFT', '84.5 %'), '', '212M', '213B'),
            Row(('Perceiver (learned positions)', 'no', VALUE), 'io_learned,decoder=average'),
            Row(('Perceiver IO, A (learned positions)', 'no', VALUE), 'io_learned'),
            Row(('Perceiver (conv)', 'no', VALUE), 'io_conv,decoder=average'),
            Row(('Perceiver IO, A (conv)', 'no', VALUE), 'io_conv'),
            Row(('Perceiver IO, B (conv)', 'JFT', '86.4 %'), '', '212M', '176B'),
        ),
    ),
    'IO table 8': Table(
        'imagenet',
        ('Model', 'Steps/s'),
        (
            Row(('Perceiver (2D FF)', '4.73'), 'io_fourier,decoder=average'),
            Row(('Perceiver IO (2D FF)', '4.85'), 'io_fourier'),
            Row(('Perceiver (learned positions)', '4.16'), 'io_learned,decoder=average'),
            Row(('Perceiver IO (learned positions)', '4.14'), 'io_learned'),
            Row(('Perceiver (conv)', '4.73'), 'io_conv,decoder=average'),
            Row(('Perceiver IO (conv)', '5.58'), 'io_conv'),
            Row(('Perceiver IO (pretrained)', '6.41')),
        ),
    ),
    'IO table 10': Table(
        'audioset',
        ('Model', 'Input', 'mAP', 'D', 'Steps/s'),
        (
            Row(('Perceiver', 'raw', VALUE, '512', '3.8'), 'io_raw_audio_video,decoder=average'),
            Row(('Perceiver IO', 'raw', VALUE, '512', '3.8'), 'io_raw_audio_video'),
            Row(('Perceiver', 'mel', VALUE, '512', '3.8'), 'io_mel_video,decoder=average'),
            Row(('Perceiver IO', 'mel', VALUE, '1,024', '3.8'), 'io_mel_video'),
        ),
    ),
}

OURS = {  # task -> variant that is in no paper -> what it is trained on
    'imagenet': {
        'cifar10,model=perceiver,permuted=no': 'CIFAR-10',
        'cifar10,model=perceiver,permuted=yes': 'CIFAR-10, permuted',
        'cifar10,model=resnet,permuted=no': 'CIFAR-10',
        'cifar10,model=resnet,permuted=yes': 'CIFAR-10, permuted',
        'cifar10,model=vit,permuted=no': 'CIFAR-10',
        'cifar10,model=vit,permuted=yes': 'CIFAR-10, permuted',
        'cifar10,model=transformer,permuted=no': 'CIFAR-10 at 16x16',
        'cifar10,model=transformer,permuted=yes': 'CIFAR-10 at 16x16, permuted',
        'small': "a folder of one's own images, here of ten classes",
        'demo': "scikit-learn's digits",
    },
    'audioset': {
        'esc,input=mel': 'ESC-50, or any folder of labelled sounds',
        'esc,input=raw_audio': 'ESC-50, or any folder of labelled sounds',
        'esc,input=filterbank': 'ESC-50, or any folder of labelled sounds',
        'demo': 'generated sounds',
    },
    'modelnet40': {
        'small': 'ModelNet40, 512 points of a shape',
        'small,model=vit2': 'ModelNet40, 1,024 points of a shape',
        'small,model=vit16': 'ModelNet40, 1,024 points of a shape',
        'small,model=transformer': 'ModelNet40, 1,024 points of a shape',
        'demo': 'generated shapes',
    },
    'flow': {
        'small': 'generated scenes',
        'demo': 'generated scenes, smaller and slower ones',
    },
}


def models() -> Iterator[tuple[str, str]]:
    """Yields task and variant of each model of the tables that is here, once."""
    of_papers = [(x.task, row.variant) for x in PAPERS.values() for row in x.rows if row.variant]
    ours = [(task, variant) for task, variants in OURS.items() for variant in variants]
    yield from dict.fromkeys(of_papers + ours)


def describe(task: str, variant: str) -> dict[str, Any]:
    """Describes a model, as the launcher's `--mode=describe` does.

    Args:
      task: Name of the config file.
      variant: The variant; a model that takes the number of classes from the data has ten.

    Returns:
      What the task's `describe` returned: see `describe_model`, and the `paper`.
    """
    from experiments.tasks import make_task

    config = _config(task, variant)
    if config.model.get('num_classes') == 0:
        config.model.num_classes = CLASSES
    return make_task(config).describe()


def read_sizes(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a file of results/described/.

    Args:
      path: The file of a task.

    Returns:
      Variant -> `parameters`, `forward_flops` and, of a model with an `Encoder`, the shape of its
      `inputs`.

    Raises:
      Refused: The file holds something else; names the key.
    """
    sizes = read_json(path)
    check_types(path, sizes, dict.fromkeys(sizes, dict))
    for variant, of_model in sizes.items():
        check_types(path, of_model, FIELDS)
        if not all(0 <= of_model[key] < 2**63 for key in FIELDS):
            raise Refused(f'{path}: {variant[:80]!r}: expected numbers from 0 on, below 2**63')
    return sizes


def papers_tables(rows: Collection[Sequence[Mapping[str, Any]]], folder: Path) -> dict[str, str]:
    """Writes all tables in Markdown.

    Args:
      rows: The results of each of our rows, as `load_runs` returned them.
      folder: The folder results/, of which described/ and compiled/ are read.

    Returns:
      Name of the table, or of the task for what is in no paper -> the table.

    Raises:
      Refused: A file is damaged, or the sizes of a model are not there.
    """
    plans = [load_plan(path) for path in visible(folder / 'compiled', '*_v3.json')]
    fits_in = {plan['config'].partition(' ')[0]: plan['target'] for plan in plans}
    files = {task: folder / 'described' / f'{task}.json' for task, _ in models()}
    sizes = {task: read_sizes(path) for task, path in files.items()}
    for task, variant in models():
        if variant not in sizes[task]:
            raise Refused(f'{files[task]}: no {variant!r}; run: python -m experiments.papers')
    written = {}
    for name, table in PAPERS.items():
        lines = []
        for row in table.rows:
            if not row.variant:
                lines.append([*row.cells, '-', row.parameters, row.flops, '-', '-'])
                continue
            config = f'configs/{table.task}.py:{row.variant}'
            more = [fits_in.get(config, '-'), _scores(rows, config)]
            lines.append([*_papers_and_ours(table, row, sizes[table.task][row.variant]), *more])
        written[name] = markdown_table((*table.columns, *COLUMNS), lines)
    for task, variants in OURS.items():
        lines = [[f'`{x}`', data, *_ours(sizes[task][x])] for x, data in variants.items()]
        written[task] = markdown_table(OUR_COLUMNS, lines)
    return written


def _ours(sizes: Mapping[str, Any]) -> list[str]:
    return [short(sizes['parameters']), short(sizes['forward_flops'])]


def _papers_and_ours(table: Table, row: Row, sizes: Mapping[str, Any]) -> list[str]:
    """Returns the cells up to the FLOPs: what the config says of the paper, and what is here."""
    paper = _config(table.task, row.variant).paper
    figures = {
        key: metric_text(paper.metric, value)
        for key, value in {'value': paper.value, **paper.get('epe', {})}.items()
        if value is not None
    }
    parameters, flops = _ours(sizes)
    return [
        *(cell.format(**figures) for cell in row.cells),
        f'`{row.variant}`',
        f'{short(paper.parameters) or "-"}; {parameters}',
        f'{short(paper.flops).replace(".0B", "B") or "-"}; {flops}',
    ]


def _scores(rows: Iterable[Sequence[Mapping[str, Any]]], config: str) -> str:
    """Writes what a config reached on the paper's data, row by row, or 'no'."""
    scores = [
        scores_text(row[0]['metric'], [result['value'] for result in row])
        for row in rows
        if row[0]['config'].partition(' ')[0] == config
        and row[0]['paper_value'] is not None
        and 'weights' not in row[0]
    ]
    return '; '.join(scores) or 'no'


def _config(task: str, variant: str) -> Any:
    return importlib.import_module(f'configs.{task}').get_config(variant)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; see the module's docstring.

    Args:
      arguments: Arguments of the command line; None takes this process's own.
    """
    Parser(prog='python -m experiments.papers', description=__doc__).parse_args(arguments)
    lines: dict[str, list[str]] = {}
    for task, variant in models():
        described = describe(task, variant)
        sizes = {key: described[key] for key in ('inputs', *FIELDS) if key in described}
        lines.setdefault(task, []).append(f'  {json.dumps(variant)}: {json.dumps(sizes)}')
        print(f'{task} {variant}', flush=True)
    for task, of_task in lines.items():
        write_whole(FOLDER / f'{task}.json', '{\n' + ',\n'.join(of_task) + '\n}\n')


if __name__ == '__main__':
    with one_line_errors():
        main()
