"""Several runs in a table and a picture."""

import json

import pytest
from matplotlib.image import imread

from experiments import compare
from experiments.pictures import comparison
from perceiver_jax.errors import Refused

pytestmark = pytest.mark.smoke

RESULT = {
    'task': 'imagenet',
    'config': 'configs/imagenet.py:demo --config.seed=1',
    'data': 'digits',
    'metric': 'top1',
    'value': 0.75,
    'paper_value': None,
    'steps': 1200,
    'examples': 38400,
    'parameters': 5,
    'params_sha256': '5f1d',
    'wall_seconds': 150.0,
    'device': 'cpu x1',
    'git_commit': '0123456789abcdef-dirty',
    'seed': 1,
    'date': '2026-11-26T20:10:27+00:00',
}
TRAIN = {'step': 20, 'split': 'train', 'loss': 2.0}
EVAL = {'step': 20, 'split': 'eval', 'loss': 2.1, 'top1': 0.5, 'top5': 0.7}


def write_run(folder, rows, **files):
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path):
    config = {'task': 'imagenet', 'seed': 7}
    write_run(tmp_path / 'runs/done', [TRAIN, EVAL], config=config, result=RESULT)
    write_run(tmp_path / 'runs/going', [TRAIN, EVAL, {**TRAIN, 'step': 1400}], config=config)
    write_run(tmp_path / 'runs/new', [], config=config)
    write_run(
        tmp_path / 'runs/flow', [TRAIN, {**TRAIN, 'split': 'eval', 'epe_x': 1.5}], config={
            'task': 'flow', 'seed': 3}
    )  # fmt: skip
    write_run(tmp_path / 'runs/.hidden', [TRAIN])
    (tmp_path / 'runs/._done').write_bytes(b'\0')
    (tmp_path / 'runs/notes.txt').touch()
    return tmp_path / 'runs'


def test_a_folder_of_runs(runs, monkeypatch, capsys):
    groups = []
    write = comparison.write_comparison
    monkeypatch.setattr(
        comparison, 'write_comparison', lambda *args: groups.extend(args[2]) or write(*args)
    )
    out = runs.parent / 'x.png'
    compare.main([*map(str, sorted(runs.iterdir())), f'--out={out}'])
    assert imread(out).std() > 0.01
    assert [(x.task, x.metric, list(x.runs)) for x in groups] == [
        ('imagenet', 'top1', ['done', 'going', 'new']),
        ('flow', 'epe_x', ['flow']),
    ]
    printed, told = capsys.readouterr()
    assert told == f'{runs}/notes.txt is no run: it has no metrics.jsonl\n'
    *table, last = printed.splitlines()
    assert last == f'The curves are in {out}'
    assert len({len(line) for line in table}) == 1
    assert [[x.strip() for x in line.strip('|').split('|')] for line in table[2:]] == [
        ['done', 'top1', '75.0 %', '1,200', '2.5 min', '1', '2026-11-26 20:10', '0123456-dirty',
         'configs/imagenet.py:demo seed=1'],
        ['flow', 'epe_x', '1.50 px', '20, unfinished', '-', '3', '-', '-', '-'],
        ['going', 'top1', '50.0 %', '1,400, unfinished', '-', '7', '-', '-', '-'],
        ['new', '-', '-', '0, unfinished', '-', '7', '-', '-', '-'],
    ]  # fmt: skip


def test_results_of_before_are_compared(runs):
    old = {key: value for key, value in RESULT.items() if key not in ('seed', 'date')}
    (runs / 'done' / 'result.json').write_text(json.dumps(old | {'git_commit': None}))
    (run,) = compare.read_runs([str(runs / 'done')])
    assert compare._cells(run)[5:8] == ('7', '-', '-')


def test_runs_of_one_name_are_called_by_their_paths(runs, tmp_path):
    other = write_run(tmp_path / 'old' / 'done', [TRAIN])
    found = compare.read_runs([str(runs / 'done'), f'{runs}/done/', str(other), str(runs / 'new')])
    assert [x.name for x in found] == [str(runs / 'done'), str(other), 'new']
    assert (found[1].task, found[1].metric) == ('task unknown', None)


@pytest.mark.parametrize('name', ['result', 'config'])
@pytest.mark.parametrize('content', [b'{', b'[1]', b'\xff'])
def test_a_damaged_file_is_named(runs, name, content):
    (runs / 'done' / f'{name}.json').write_bytes(content)
    with pytest.raises(Refused, match=f'runs/done/{name}.json: '):
        compare.read_runs([str(runs / 'done')])


def test_no_run_is_refused(runs):
    with pytest.raises(Refused, match='RUN: expected folders of runs, got none'):
        compare.read_runs([str(runs / 'notes.txt'), str(runs / '.hidden'), str(runs / 'gone')])
