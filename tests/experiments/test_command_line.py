import pytest

from experiments import command_line
from experiments.training import parallel


def test_what_is_refused_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        parallel.make('pjit')
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: config.parallel is 'pjit'")
    with pytest.raises(ValueError, match='length 1; 2 is required'), command_line.one_line_errors():
        dict([(1,)])
