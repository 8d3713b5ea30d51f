"""What runs write."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

from tests.faults.door import Sample, door


@functools.cache
def _run():
    """The files of a run that was never trained, by their names below its folder."""
    from tests.experiments.test_results import RESULT
    from tests.toys.demo_run import write_demo_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_run(folder)
        (folder / 'result.json').write_text(json.dumps({**RESULT, 'seed': 0}))
        rows = [{'step': step, 'split': 'eval', 'top1': 0.5, 'loss': 1.0} for step in (1, 2)]
        lines = [json.dumps({'step': 1, 'split': 'train', 'loss': 2.0})]
        lines += [json.dumps(row) for row in rows]
        (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
        return {
            file.relative_to(folder): file.read_bytes()
            for file in folder.rglob('*')
            if file.is_file()
        }


def _write_run(folder, but=()):
    for name, content in _run().items():
        if name.parts[0] not in but:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _compared(folder):
    from experiments.compare import read_runs, table

    return table(read_runs([str(folder)]))


@door('experiments.compare.read_runs', 'experiments.results.load_result')
def result_json(folder):
    _write_run(folder, but=['checkpoints'])
    return Sample(folder / 'result.json', lambda: _compared(folder), 'json')


@door('experiments.table.read_results')
def folder_of_results(folder):
    from experiments.table import read_results, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    return Sample(folder / 'result.json', lambda: render(read_results(folder), {}), 'json')


@door('experiments.results.load_runs')
def folder_of_several_runs(folder):
    from experiments.table import read_results, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    result = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').unlink()
    runs = [{**result, 'seed': seed, 'params_sha256': f'{seed}'} for seed in (0, 1)]
    file = folder / 'seeds.json'
    file.write_text(json.dumps({'runs': runs}))
    return Sample(file, lambda: render(read_results(folder), {}), 'json')


@door('experiments.results.load_sweep', 'experiments.table.read_sweeps')
def folder_of_sweeps(folder):
    from experiments.table import read_sweeps, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    result = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').unlink()
    rows = [{'values': {'model': 'vit'}, 'results': [result], 'paper': 0.7, 'folders': ['x']}]
    file = folder / 'table2.json'
    file.write_text(json.dumps({'command': 'python -m experiments.sweep', 'rows': rows}))
    return Sample(file, lambda: render({}, read_sweeps(folder)), 'json')


@door('experiments.planning.rows.load_plan')
def folder_of_plans(folder):
    from experiments.planning.rows import FOLDER, fits_table

    file = folder / 'imagenet_perceiver_v3.json'
    shutil.copy(FOLDER / file.name, file)
    return Sample(file, lambda: fits_table(folder), 'json')


@door('experiments.papers.read_sizes')
def folder_of_sizes(folder):
    from experiments.papers import FOLDER, papers_tables

    described = folder / 'described'
    shutil.copytree(FOLDER, described)
    return Sample(described / 'flow.json', lambda: papers_tables([], folder), 'json')


@door('experiments.compare.read_runs', 'perceiver_jax.files.read_json')
def compared_config(folder):
    _write_run(folder, but=['checkpoints'])
    return Sample(folder / 'config.json', lambda: _compared(folder), 'json')


@door('experiments.compare.read_runs', 'experiments.training.workdir.read_rows')
def metrics_jsonl(folder):
    _write_run(folder, but=['checkpoints', 'result.json'])
    return Sample(folder / 'metrics.jsonl', lambda: _compared(folder), 'text')


@door(
    'experiments.open_model.open_model',
    'experiments.open_model.load_workdir',
    'experiments.run_config.get_config',
    slow=12,
)
def config_json(folder):
    from experiments.open_model import open_model

    _write_run(folder, but=['result.json'])
    return Sample(folder / 'config.json', lambda: open_model(folder), 'json')


@door('experiments.training.checks.check_resumable')
def config_json_of_a_resumed_run(folder):
    from configs.imagenet import get_config
    from experiments.training.checks import check_resumable

    config = get_config('demo')
    (folder / 'checkpoints' / '5').mkdir(parents=True)
    file = folder / 'config.json'
    file.write_text(json.dumps(config.to_dict()))
    return Sample(file, lambda: check_resumable(folder, config), 'json', named=folder.name)


@door('experiments.training.checkpointing.load_params', slow=6)
def checkpoint(folder):
    from experiments.training.checkpointing import load_params

    _write_run(folder, but=['result.json'])
    files = [x for x in (folder / 'checkpoints' / '5').rglob('*') if x.is_file()]
    file = max(files, key=os.path.getsize)

    def read():  # step 3 takes the place of a damaged step 5
        return load_params(folder)

    return Sample(file, read)
