"""What a person at the command line sees."""

import sys

import pytest

from experiments import command_line
from experiments.training import parallel


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
