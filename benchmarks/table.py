"""The tables of docs/speed.md, generated from the results of `make bench` and `make bench-gpu`.

python -m benchmarks.table   rewrites the tables in docs/speed.md
"""

import json
from pathlib import Path

from benchmarks.harness import RESULTS
from experiments.table import ROOT, put_tables

PAGE = 'docs/speed.md'
MARKS = '<!-- speed:begin -->', '<!-- speed:end -->'
GPU_MARKS = '<!-- gpu:begin -->', '<!-- gpu:end -->'
DEVICE = 'cpu-x2'
GPU = 'nvidia-h200-x1'
COLUMNS = ('ours', 'ours, array', 'plain', 'reference', 'transformers', 'transformers, compiled')
ROWS = {  # name of the row on the page -> benchmark, case, pass
    'Cross-attend, 512 x 50,176 x 261': ('cross_attend', '512 x 50,176 x 261', 'forward'),
    '... gradient of its weights and latents': ('cross_attend', '512 x 50,176 x 261', 'gradient'),
    '... and of its inputs': ('cross_attend', '512 x 50,176 x 261', 'gradient, inputs too'),
    'Cross-attend, 512 x 1,048,576 x 261': ('cross_attend', '512 x 1,048,576 x 261', 'forward'),
    '... gradient of weights, latents, inputs': (
        'cross_attend',
        '512 x 1,048,576 x 261',
        'gradient, inputs too',
    ),
    '`io_fourier`, an image of 224x224': ('image_forward', 'io_fourier', 'forward'),
    '`perceiver`, an image of 224x224': ('image_forward', 'perceiver', 'forward'),
    'Optical flow, a pair of 368x496': ('flow_forward', '368x496', 'forward'),
    'Training step, 16 images of 32x32': ('training_step', '32x32', 'training step'),
    'Training step, 16 images of 64x64': ('training_step', '64x64', 'training step'),
    'Training step of `perceiver`, an image of 224x224': (
        'training_step',
        'perceiver, 224x224',
        'training step',
    ),
}


def speed_table(folder: Path = RESULTS) -> str:
    """Writes the table of the CPU in Markdown: seconds, and the memory that a run adds.

    Args:
      folder: The folder of the results.
    """
    measured = {}
    for name in {benchmark for benchmark, _, _ in ROWS.values()}:
        results = json.loads((folder / f'{DEVICE}_{name}.json').read_text('utf-8'))
        for row in results['rows']:
            measured[name, row['case'], row['pass'], row['implementation']] = row
    lines = [['', *COLUMNS], ['---'] * (1 + len(COLUMNS))]
    lines += [
        [title, *(_cell(measured.get((*case, column))) for column in COLUMNS)]
        for title, case in ROWS.items()
    ]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def gpu_table(folder: Path = RESULTS) -> str:
    """Writes the table of a GPU: time, share of the rate of a large product, memory beside inputs.

    Args:
      folder: The folder of the results.
    """
    results = json.loads((folder / f'{GPU}_gpu.json').read_text('utf-8'))
    lines = [['', 'implementation', 'time', 'share of peak', 'memory'], 5 * ['---']]
    for row in results['rows']:
        share, size = row.get('share_of_peak'), row.get('temporary_bytes')
        rate = f'{row["flops_per_second"] / 1e12:.0f} TFLOP/s'  # the peak itself
        lines.append(
            [
                f'{row["case"]}, {row["pass"]}',
                row['implementation'],
                f'{1e3 * row["seconds"]:.3g} ms',
                rate if share is None else f'{100 * share:.0f} %',
                '-' if size is None else _memory(size),
            ]
        )
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def updated(text: str, folder: Path = RESULTS) -> str:
    """Returns the page with the tables of what lies in a folder of results.

    Args:
      text: The page.
      folder: The folder of the results.

    Raises:
      Refused: The page has no place for a table.
    """
    text = put_tables(text, speed_table(folder), MARKS, PAGE)
    return put_tables(text, gpu_table(folder), GPU_MARKS, PAGE)


def _cell(row: dict | None) -> str:
    if row is None:
        return '-'
    return f'{row["seconds"]:.2g} s, {_memory(row["peak_bytes"])}'


def _memory(size: int) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB'


if __name__ == '__main__':
    page = ROOT / PAGE
    page.write_text(updated(page.read_text('utf-8')), 'utf-8')
