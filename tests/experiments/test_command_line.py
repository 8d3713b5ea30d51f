"""What a person at the command line sees."""

import argparse
import importlib
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command_line
from experiments.training import parallel
from perceiver_jax.errors import Refused


def test_progress_is_a_line_in_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    now = iter([100.0, 104.0, 108.0])
    monkeypatch.setattr(command_line.time, 'monotonic', lambda: next(now))
    progress = command_line.Progress('tile')
    progress(1, 2)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress.start = 100.0
    progress(1, 2)
    progress(2, 2)
    assert capsys.readouterr().err == '\rtile 1/2, 4 s left \rtile 2/2, 0 s left \n'


def test_what_is_refused_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        parallel.make('pjit')
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: config.parallel is 'pjit'")
    with pytest.raises(ValueError, match='length 1; 2 is required'), command_line.one_line_errors():
        dict([(1,)])


def test_a_system_error_names_its_file_and_no_number(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        (tmp_path / 'none.json').read_text()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'error: {tmp_path}/none.json: No such file or directory\n'


@pytest.mark.parametrize(
    'too_large',
    [
        lambda: np.zeros((10**7, 10**6)),
        lambda: jax.jit(lambda x: x * jnp.ones((10**7, 10**6)))(2.0),
    ],
)
def test_what_is_too_big_for_the_memory_is_one_line(too_large, capsys):
    with (
        pytest.raises(SystemExit) as ended,
        command_line.one_line_errors(smaller='take a smaller one'),
    ):
        too_large()
    assert ended.value.code == 2
    assert re.fullmatch(
        r'error: out of memory: [\d,]+\.\d GB were asked for at once, and .* has [\d,]+\.\d GB, '
        'some of it in use; take a smaller one\n',
        capsys.readouterr().err,
    )
    with pytest.raises(RuntimeError, match='a bug'), command_line.one_line_errors():
        raise RuntimeError('a bug')


@pytest.mark.parametrize('path', ['runs/x', '/a~/b', '-', '', './~x', 'hub/name', 'a:b', 'a//b'])
def test_other_paths_are_returned_as_they_are(path):
    assert command_line.local_path(path, '--out') == path


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/home/me')
    assert command_line.local_path('~/runs/x', '--out') == '/home/me/runs/x'
    assert command_line.local_path('~', '--out') == '/home/me'
    monkeypatch.chdir(tmp_path)
    (tmp_path / '~nobody.png').touch()
    assert command_line.local_path('~nobody.png', 'INPUT') == '~nobody.png'
    with pytest.raises(
        Refused, match='--out: ~no_such_user/x names no home folder; .* is ./~no_such_user/x'
    ):
        command_line.local_path('~no_such_user/x', '--out')


@pytest.mark.parametrize('path', ['gs://b/x', 's3://b', 'https://a.b/c.npz', 'file:///x'])
def test_addresses_are_refused(path):
    with pytest.raises(Refused, match=f'--out: {path} is an address; only files and folders'):
        command_line.local_path(path, '--out')


COMMANDS = {  # arguments, with one that holds {} for a path, and what its message names
    'predict': [
        ('MODEL', ['{}']),
        ('INPUT', ['model', '{}']),
        ('--out', ['model', '--out={}']),
        ('--classes', ['model', '--classes={}']),
        ('--ground_truth', ['model', '--ground_truth={}']),
    ],
    'convert': [('source', ['{}', 'x']), ('target', ['x', '{}'])],
    'submit': [
        ('MODEL', ['{}', 'kitti2015']),
        ('--data', ['x', 'kitti2015', '--data={}']),
        ('--out', ['x', 'kitti2015', '--out={}']),
    ],
    'table': [('--add', ['--add={}'])],
    'compare': [('RUN', ['{}']), ('--out', ['x', '--out={}'])],
    'modelnet40.builder': [('FROM', ['{}', 'x']), ('TO', ['x', '{}'])],
    'audioset.builder': [
        (name, [f'{x}={{}}' if x == name else f'{x}=x' for x in options])
        for options in [('--classes', '--train', '--validation', '--media', '--out')]
        for name in options
    ],
}


RUNS = ('MODEL', 'source', 'RUN', '--add')  # what may be the folder of a run, or its result


@pytest.mark.parametrize(
    ('command', 'name', 'arguments'),
    [(command, *case) for command, cases in COMMANDS.items() for case in cases],
)
def test_every_path_of_every_command_is_a_local_path_or_that_of_a_run(
    monkeypatch, capsys, tmp_path, command, name, arguments
):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f'experiments.{command}')
    run = module.parse if command == 'predict' else module.main
    seen = []
    owner = command_line if command == 'audioset.builder' else module
    door = 'run_path' if name in RUNS else 'local_path'
    opened = getattr(command_line, door)
    monkeypatch.setattr(
        owner, door, lambda path, name: seen.append((path, name)) or opened(path, name)
    )
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        run([x.format('s3://b/x') for x in arguments])
    assert ended.value.code == 2
    assert seen[-1] == ('s3://b/x', name)
    assert capsys.readouterr().err.startswith(f'error: {name}: s3://b/x is an address')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('command', COMMANDS)
def test_mistakes_of_every_command_get_one_line(capsys, command):
    module = importlib.import_module(f'experiments.{command}')
    run = module.parse if command == 'predict' else module.main
    with pytest.raises(SystemExit) as ended:
        run([*COMMANDS[command][0][1], '--no_such_option'])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.endswith('; --help explains\n')
    assert err.count('\n') == 1


@pytest.mark.parametrize('name', ['config', 'workdir'])
def test_paths_of_launch_are_local_paths_or_in_a_bucket(tmp_path, name):
    paths = dict(config='configs/imagenet.py:demo', workdir=str(tmp_path / 'x'))
    for path, message in (
        ('s3://b/x', f'error: --{name}: s3://b/x is an address'),
        ('~/nowhere.py', f'{tmp_path}/nowhere.py'),
    ):
        command = [sys.executable, '-m', 'experiments.launch', '--config.train.batch_size=0']
        command[3:3] = [f'--{key}={value}' for key, value in {**paths, name: path}.items()]
        if name == 'workdir':
            command.append('--mode=eval')  # names the folder
        environment = {**os.environ, 'HOME': str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert message in done.stderr and done.stderr.count('\n') == 1


def test_nobody_need_read_to_the_end():
    code = 'from experiments.command_line import one_line_errors as o\nwith o():\n'
    code += '    while True: print("x" * 1000)'
    command = [sys.executable, '-c', code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b''
    assert process.returncode == 141


def test_a_program_ends_at_once_whatever_its_threads_do():
    code = (
        'import atexit, threading, time; from experiments.command_line import end_at_once\n'
        'atexit.register(print, "last"); threading.Thread(target=time.sleep, args=(100,)).start()\n'
        'print("first"); end_at_once(3)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (3, 'first\nlast\n', '')


@pytest.mark.parametrize('text, factors', [('1', [1]), ('4,2,1', [4, 2, 1])])
def test_factors_are_numbers(text, factors):
    assert command_line.shrinking_factors(text) == factors


@pytest.mark.parametrize('text', ['', '4,', '4, 2', '0', '-1', '2.0', 'x', '99999'])
def test_what_is_no_factors_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected numbers such as 4,2,1, got'):
        command_line.shrinking_factors(text)
