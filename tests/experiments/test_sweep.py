import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import sweep
from experiments.config_parsing import config_of
from experiments.results import Row
from experiments.sweep import combinations
from perceiver_jax.errors import Refused
from tests.toys.results import RESULT

pytestmark = pytest.mark.smoke


def test_each_combination_is_a_run():
    flags = ['--config=configs/imagenet.py:cifar10,model=vit|resnet,permuted=no']
    runs = combinations([*flags, '--config.seed=0|1', '--config.data.path=/a:b'])
    assert [run.name for run in runs] == [
        'model=vit,seed=0',
        'model=vit,seed=1',
        'model=resnet,seed=0',
        'model=resnet,seed=1',
    ]
    assert runs[3].flags == [
        '--config=configs/imagenet.py:cifar10,model=resnet,permuted=no',
        '--config.seed=1',
        '--config.data.path=/a:b',
    ]
    assert runs[0].values == {'model': 'vit', 'seed': '0'}


def test_the_first_flag_varies_slowest_and_the_config_stands_first():
    runs = combinations(['--config.seed=0|1', '--config=a.py:small,kind=x|y'])
    assert [run.name for run in runs] == [f'seed={i},kind={x}' for i in (0, 1) for x in 'xy']
    assert runs[1].flags == ['--config=a.py:small,kind=y', '--config.seed=0']


def test_the_command_of_the_docs_is_one_that_the_launcher_takes():
    """Its first run, up to a description of the model."""
    text = (Path(__file__).parents[2] / 'docs' / 'training.md').read_text()
    (command,) = re.findall(r'python -m experiments\.sweep (.*?)```', text, re.DOTALL)
    _, workdir, *flags = ['', *shlex.split(command.replace('\\\n', ' '))]
    assert workdir.startswith('--workdir=')
    runs = combinations(flags)
    assert len(runs) == 24
    launch = [sys.executable, '-m', 'experiments.launch', *runs[0].flags, '--mode=describe']
    described = subprocess.run(launch, capture_output=True, text=True)
    assert described.returncode == 0, described.stderr


def test_variants_can_be_alternatives():
    runs = combinations(['--config=configs/modelnet40.py:small|demo'])
    assert [run.flags for run in runs] == [
        ['--config=configs/modelnet40.py:small'],
        ['--config=configs/modelnet40.py:demo'],
    ]
    assert runs[1].name == 'variant=demo'


def test_names_are_those_of_folders():
    (run, _) = combinations(['--config.augmentation.crop_area=(0.5, 1.0)|(0.1, 1.0)'])
    assert run.name == 'crop_area=_0.5,_1.0_'


@pytest.mark.parametrize(
    'flags, said',
    [
        (['--config=a.py:small'], 'there is one run'),
        (['--config.seed=1|1'], 'seed: expected different values of one key'),
        (['--config.seed=1|'], 'seed: expected different values'),
        (['--config.seed=1|2', '--config.data.seed=1|2'], 'different values of one key'),
    ],
)
def test_what_makes_no_sweep(flags, said):
    with pytest.raises(Refused, match=said):
        combinations(flags)


CONFIG = '--config=configs/imagenet.py:cifar10,model=perceiver,permuted=no'


@pytest.fixture
def launched(monkeypatch):
    """Runs with a value of their seed's; those from weights 'fails' fail, 'stops' stop early."""
    calls = []

    def run(command):
        *_, last = command
        workdir = sweep.Path(last.removeprefix('--workdir='))
        calls.append(workdir.name)
        if 'init_from=fails' in workdir.name:
            return 2, False
        if 'init_from=interrupted' in workdir.name:
            return 130, True
        workdir.mkdir(parents=True, exist_ok=True)
        if 'init_from=stops' in workdir.name:
            return 0, True
        config = config_of([x for x in command if x.startswith('--config')])
        value = {0: 0.5, 1: 0.7}[config.seed]
        (workdir / 'result.json').write_text(json.dumps({**RESULT, 'value': value}))
        if config.model.num_classes == 0:
            config.model.num_classes = 7  # as many as the data has
        (workdir / 'config.json').write_text(config.to_json())
        return 0, 'init_from=late' in workdir.name

    monkeypatch.setattr(sweep, 'run_to_its_end', run)
    return calls


def test_runs_are_averaged_and_finished_ones_not_repeated(launched, tmp_path, capsys):
    flags = ['--workdir', str(tmp_path), CONFIG, '--config.init_from=a|b', '--config.seed=0|1']
    sweep.main(flags)
    assert launched == [f'init_from={x},seed={i}' for x in 'ab' for i in (0, 1)]
    sweep.main([*flags, '--config.data.path=/moved'])
    assert len(launched) == 4
    rows = json.loads((tmp_path / 'sweep.json').read_text())['rows']
    assert [row['values'] for row in rows] == [{'init_from': 'a'}, {'init_from': 'b'}]
    table = (tmp_path / 'sweep.md').read_text()
    # 0.5 and 0.7: the mean is 0.6, the sample deviation 0.1414.
    assert '| a | 60.0 % | 14.1 points | 2 | 78.0 % |' in table
    assert table.strip() in capsys.readouterr().out
    assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')


def test_the_picture_of_a_single_row_is_of_its_runs(launched, tmp_path):
    flags = [CONFIG, '--config.seed=0|1']
    sweep.main(['--workdir', str(tmp_path), *flags])
    (row,) = json.loads((tmp_path / 'sweep.json').read_text())['rows']
    assert row['values'] == {} and len(row['results']) == 2
    rows = [Row(**row), Row({'init_from': 'b'}, row['results'], None, row['folders'])]
    shown = sweep.compared_in_picture(rows[:1], combinations(flags), tmp_path)
    assert [each.values for each in shown] == [{'seed': '0'}, {'seed': '1'}]
    assert [each.results[0]['value'] for each in shown] == [0.5, 0.7]
    assert sweep.compared_in_picture(rows, combinations(flags), tmp_path) == rows


def test_values_may_have_commas_which_folders_are_not_split_at(launched, tmp_path):
    flags = [CONFIG, '--config.seed=0', "--config.train.freeze=('inputs', 'encoder')|()"]
    sweep.main(['--workdir', str(tmp_path), '--average=freeze', *flags])
    rows = sweep.finished_rows(combinations(flags), tmp_path, ['freeze'])
    shown = sweep.compared_in_picture(rows, combinations(flags), tmp_path)
    assert [each.values for each in shown] == [
        {'freeze': "('inputs', 'encoder')"},
        {'freeze': '()'},
    ]
    assert (tmp_path / 'sweep.png').exists()


def test_a_result_of_another_config_is_none_of_these_runs(launched, tmp_path):
    """They are launched again: the launcher refuses, or makes the run longer."""
    flags = ['--workdir', str(tmp_path), CONFIG, '--config.seed=0|1']
    sweep.main(flags)
    with pytest.raises(Refused, match='no run is finished'):
        sweep.main([*flags, '--config.optimizer.learning_rate=1', '--table'])
    sweep.main([*flags, '--config.train.steps=9'])
    assert launched == ['seed=0', 'seed=1'] * 2


def test_what_the_data_told_a_run_is_not_another_config(launched, tmp_path):
    flags = ['--workdir', str(tmp_path), CONFIG, '--config.model.num_classes=0']
    for _ in range(2):
        sweep.main([*flags, '--config.seed=0|1'])
    assert launched == ['seed=0', 'seed=1']


def test_a_run_that_fails_does_not_keep_the_others(launched, tmp_path):
    flags = ['--workdir', str(tmp_path), CONFIG]
    failed = 'init_from=fails,seed=0; init_from=fails,seed=1'
    with pytest.raises(Refused, match=f'2 of 4 runs failed: {failed}'):
        sweep.main([*flags, '--config.init_from=fails|a', '--config.seed=0|1'])
    assert launched[2:] == ['init_from=a,seed=0', 'init_from=a,seed=1']
    assert (tmp_path / 'sweep.md').exists()


@pytest.mark.parametrize('kind', ['stops', 'interrupted'])
def test_a_run_that_was_stopped_ends_the_sweep(launched, tmp_path, kind):
    flags = ['--workdir', str(tmp_path), CONFIG, f'--config.init_from={kind}|a']
    name = f'init_from={kind},seed=0'
    with pytest.raises(Refused, match=f'{name} was stopped; the same command goes on'):
        sweep.main([*flags, '--config.seed=0|1'])
    assert launched == [name]


def test_a_signal_at_the_end_of_a_run_ends_the_sweep_too(launched, tmp_path):
    flags = ['--workdir', str(tmp_path), CONFIG, '--config.init_from=late|a']
    with pytest.raises(Refused, match='stopped behind init_from=late,seed=0; the same command'):
        sweep.main([*flags, '--config.seed=0|1'])
    assert launched == ['init_from=late,seed=0']
    assert 'late' in (tmp_path / 'sweep.md').read_text()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_which_ends_as_it_likes(tmp_path, number):
    """The run takes its time after the signal, as one that saves a checkpoint."""
    run = (
        'import pathlib, signal, sys, time\n'
        'def end(*_):\n'
        '    time.sleep(0.5)\n'
        '    pathlib.Path("saved").touch()\n'
        '    sys.exit(7)\n'
        'for x in (signal.SIGINT, signal.SIGTERM):\n'
        '    signal.signal(x, end)\n'
        'pathlib.Path("ready").touch()\n'
        'time.sleep(60)\n'
    )
    script = (
        'import sys; from experiments.sweep import run_to_its_end\n'
        f'code, asked = run_to_its_end([sys.executable, "-c", {run!r}])\n'
        'sys.exit(code + 10 * asked)'
    )
    process = subprocess.Popen([sys.executable, '-c', script], cwd=tmp_path)
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == 17
    assert (tmp_path / 'saved').exists()


@pytest.mark.parametrize(
    'flags, said',
    [
        (['--config.seed', '0|1'], 'flags of experiments.launch are written --name=value'),
        (['--mode=eval', '--config.seed=0|1'], 'a sweep trains'),
        (['--table', '--config.seed=0|1'], 'no run is finished'),
    ],
)
def test_command_lines_that_cannot_be_used(tmp_path, flags, said):
    with pytest.raises(Refused, match=said):
        sweep.main(['--workdir', str(tmp_path), *flags])
