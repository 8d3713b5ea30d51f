"""The task of docs/adding_a_task.md: in a copy of the repository its files train, and fit in."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.smoke

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / 'docs' / 'adding_a_task.md').read_text('utf-8')
# A file by its path, or lines to be put at the head of a table in a file.
BLOCKS = re.findall(
    r'^`([\w/]+\.py)`(?:, in `(\w+)`)?\n\n```python\n(.*?)```', PAGE, re.DOTALL | re.MULTILINE
)
COPIED = ('configs', 'experiments', 'perceiver_jax', 'pyproject.toml', 'tests')
TRAIN = [
    '--config=configs/knots.py',
    '--config.model.encoder.num_cross_attends=1',
    '--config.model.encoder.num_blocks=1',
    '--config.train.batch_size=16',
    '--config.train.log_every_steps=10',
    '--config.data.num_validation=40',
    '--config.evaluation.batch_size=40',
]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of the repository with what the page adds."""
    copy = tmp_path_factory.mktemp('checkout')
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', 'golden')
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy)
    for file, table, lines in BLOCKS:
        path = copy / file
        if table:
            text = path.read_text('utf-8')
            head = re.search(rf'^{table}\b.*\n', text, re.MULTILINE)
            lines = text[: head.end()] + lines + text[head.end() :]
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines, 'utf-8')
    (copy / 'experiments' / 'knots' / '__init__.py').touch()
    return copy


def run(checkout, module, *arguments):
    """Runs a module in the copy; gives what it printed."""
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_names_its_files_in_their_order():
    rows = re.findall(r'^\| \d \| .*?`([\w/]+\.py)` \|', PAGE, re.MULTILINE)
    assert rows == [file for file, _, _ in BLOCKS] and len(rows) == 7
    titles = [int(number) for number in re.findall(r'^## (\d)\. ', PAGE, re.MULTILINE)]
    assert titles == list(range(1, len(rows) + 1))


@pytest.mark.slow
def test_its_task_trains_resumes_and_is_evaluated(checkout, tmp_path):
    workdir = f'--workdir={tmp_path / "run"}'
    run(checkout, 'experiments.launch', *TRAIN, workdir, '--config.train.steps=10')
    printed = run(checkout, 'experiments.launch', *TRAIN, workdir, '--config.train.steps=30')
    assert 'Resuming after step 10.' in printed
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert (result['task'], result['steps'], result['paper_value']) == ('knots', 30, None)
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    losses = [row['loss'] for row in map(json.loads, lines) if row['split'] == 'train']
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2]
    assert (tmp_path / 'run' / 'report.png').stat().st_size > 30_000
    printed = run(checkout, 'experiments.launch', workdir, '--mode=eval')
    assert f'accuracy {result["value"]:.4f} at step 30' in printed
    np.save(tmp_path / 'knot.npy', np.random.default_rng(0).normal(size=(128, 3)))
    arguments = tmp_path / 'run', tmp_path / 'knot.npy', '--out', tmp_path, '--json'
    predicted = json.loads(run(checkout, 'experiments.predict', *map(str, arguments)))
    assert {x['label'] for x in predicted['best']} >= {'trefoil', 'unknot'}


@pytest.mark.slow
def test_the_tests_of_all_tasks_take_it_in(checkout):
    changed = {file for file, _, _ in BLOCKS}
    run(checkout, 'ruff', 'check', '--quiet', *changed)
    run(checkout, 'ruff', 'format', '--quiet', '--check', *changed)
    printed = run(
        checkout,
        'pytest',
        '-q',
        '-k knots or room or upwards or name_a_model or somewhere or has_a_row or allowed_ones',
        *('tests/test_imports.py', 'tests/test_configs.py', 'tests/faults/test_doors.py'),
        *(f'tests/experiments/test_{x}.py' for x in ('tasks', 'config_keys', 'keys')),
        'tests/experiments/test_wrong_values.py::'
        'test_every_key_has_its_allowed_values_and_every_config_has_allowed_ones',
    )
    assert int(re.search(r'(\d+) passed', printed)[1]) >= 10
