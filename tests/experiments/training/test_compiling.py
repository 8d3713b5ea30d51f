import os
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.training import compiling
from perceiver_jax.errors import Refused

NO_CANDIDATES = jax.errors.JaxRuntimeError('INTERNAL: No candidates\ncould be compiled')


def failing(*errors):
    """A function that raises errors, one a call, before it returns its arguments."""
    left = list(errors)

    def function(*arguments):
        if left:
            raise left.pop(0)
        return arguments

    return function


def test_the_first_call_is_made_again_where_the_compiler_fails(capsys):
    call = compiling.tried_twice(failing(NO_CANDIDATES))
    assert call(3, 'x') == (3, 'x')
    assert capsys.readouterr().err == (
        'XLA failed and is tried once more: INTERNAL: No candidates could be compiled\n'
    )
    assert compiling.tried_twice(failing())(5) == (5,)
    assert capsys.readouterr().err == ''


def test_what_would_fail_again_is_raised(capsys):
    again = jax.errors.JaxRuntimeError('INTERNAL: again')
    with pytest.raises(jax.errors.JaxRuntimeError, match='again'):
        compiling.tried_twice(failing(NO_CANDIDATES, again))()
    capsys.readouterr()
    for error in (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: '), ValueError('INTERNAL')):
        with pytest.raises(type(error)):
            compiling.tried_twice(failing(error))()
    donated = jax.device_put(np.ones(3))
    donated.delete()
    with pytest.raises(jax.errors.JaxRuntimeError):  # it was compiled: the program itself failed
        compiling.tried_twice(failing(NO_CANDIDATES))({'x': donated})
    errors = []
    call = compiling.tried_twice(lambda: failing(*errors)())
    call()
    errors.append(NO_CANDIDATES)
    with pytest.raises(jax.errors.JaxRuntimeError):
        call()
    assert capsys.readouterr().err == ''


@pytest.fixture
def settings(monkeypatch):
    """jax's settings of the cache as they are without an environment; changes are undone."""
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update('jax_compilation_cache_dir', None)
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_directory_of_the_user(
    settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    compiling.keep_programs(None, 'run')
    folder = tmp_path / 'cache' / 'perceiver_jax'
    assert settings.jax_compilation_cache_dir == str(folder)
    assert settings.jax_persistent_cache_min_compile_time_secs < 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().out == (
        f"Compiled programs are kept in {folder}; --compilation_cache='' keeps none.\n"
    )
    monkeypatch.setenv('XDG_CACHE_HOME', 'not absolute')
    monkeypatch.setenv('HOME', '/home/me')
    assert compiling.default_folder() == Path('/home/me/.cache/perceiver_jax')


def test_a_folder_that_is_named_comes_before_that_of_the_environment(settings, tmp_path, capsys):
    settings.update('jax_compilation_cache_dir', str(tmp_path / 'environment'))
    compiling.keep_programs(None, 'run')
    assert settings.jax_compilation_cache_dir == str(tmp_path / 'environment')
    compiling.keep_programs(str(tmp_path / 'named'), 'run')
    assert settings.jax_compilation_cache_dir == str(tmp_path / 'named')
    settings.update('jax_compilation_cache_dir', 'gs://bucket/programs')
    compiling.keep_programs(None, 'run')
    assert settings.jax_compilation_cache_dir == 'gs://bucket/programs'
    capsys.readouterr()
    compiling.keep_programs('', 'run')
    assert settings.jax_compilation_cache_dir is None
    assert capsys.readouterr().out == ''


def test_a_folder_that_cannot_be_written_is_refused_or_done_without(
    settings, tmp_path, monkeypatch, capsys
):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(Refused, match='--compilation_cache: .*/file/x: Not a directory'):
        compiling.keep_programs(str(tmp_path / 'file' / 'x'), 'run')
    with pytest.raises(Refused, match='run/programs lies in the workdir'):
        compiling.keep_programs(str(tmp_path / 'run' / 'programs'), tmp_path / 'run')
    compiling.keep_programs(None, 'run')
    folder = tmp_path / 'file' / 'perceiver_jax'
    assert capsys.readouterr().out == f'{folder}: Not a directory: compiled programs are not kept\n'
    assert settings.jax_compilation_cache_dir is None


def test_processes_that_do_not_see_the_same_programs_keep_none(
    settings, tmp_path, monkeypatch, capsys
):
    def exchange(view):
        return [view, [None, 'others']]

    monkeypatch.setattr(compiling.parallel, 'exchange', exchange)
    compiling.keep_programs(str(tmp_path), 'run')
    assert settings.jax_compilation_cache_dir is None
    assert 'is not the same for all processes' in capsys.readouterr().out


def test_the_programs_that_were_not_used_for_longest_are_removed(tmp_path):
    for age, name in enumerate(['new-cache', 'used-cache', 'older-cache', 'oldest-cache', 'other']):
        (tmp_path / name).write_bytes(10 * b'x')
        os.utime(tmp_path / name, (1e9 - age, 1e9 - 10 * age))  # read, written
    compiling.remove_oldest(tmp_path, max_bytes=25)
    assert {path.name for path in tmp_path.iterdir()} == {'new-cache', 'used-cache', 'other'}


def test_a_program_that_was_cut_off_is_told_in_a_line_and_makes_room(
    settings, tmp_path, monkeypatch, capsys
):
    others = []
    monkeypatch.setattr(warnings, 'showwarning', lambda *shown: others.append(shown))
    compiling.keep_programs(str(tmp_path), 'run')
    names = ['jit_update_step-1f-cache', 'jit_update_step_2-1f-cache', 'jit_predict-2e-cache']
    for name in names:
        (tmp_path / name).touch()
    capsys.readouterr()
    message = "Error reading persistent compilation cache entry for 'jit_update_step': error:\n-5"
    warnings.showwarning(UserWarning(message), UserWarning, 'compiler.py', 7)
    assert capsys.readouterr().err == f'{tmp_path}: {" ".join(message.split())}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    warnings.showwarning('another', UserWarning, 'compiler.py', 7)
    assert others == [('another', UserWarning, 'compiler.py', 7)]
