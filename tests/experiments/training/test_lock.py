import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from experiments.training import lock as locks
from experiments.training import loop
from experiments.training.lock import lock
from tests.toys.toy_task import ToyTask, get_config

HERE = socket.gethostname()


def write_record(workdir, host, age, process=123):
    content = {'host': host, 'process': process, 'time': time.time() - age}
    (workdir / '.lock.json').write_text(json.dumps(content))


def test_the_second_run_is_refused_until_the_first_has_ended(tmp_path):
    config = get_config()
    with lock(tmp_path):
        with pytest.raises(ValueError) as error:
            loop.train(config, ToyTask(config), tmp_path, 'toy')
        assert str(error.value).startswith(
            f'{tmp_path}: another run writes there, process {os.getpid()} on host {HERE}; choose '
        )
        assert {path.name for path in tmp_path.iterdir()} == {'.lock', '.lock.json'}
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']
    with lock(tmp_path):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    """However it ends: its record is still there, and recent."""
    script = 'import fcntl, sys, time\nfile = open(sys.argv[1], "a")\n'
    script += 'fcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(100)'
    command = [sys.executable, '-S', '-c', script, tmp_path / '.lock']
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        write_record(tmp_path, HERE, age=0, process=process.pid)
        with pytest.raises(ValueError, match=f'process {process.pid} on host {HERE}'):
            lock(tmp_path).__enter__()
        process.kill()
    with lock(tmp_path):
        assert json.loads((tmp_path / '.lock.json').read_text())['process'] == os.getpid()


@pytest.mark.parametrize(
    ('host', 'age', 'refused'),
    [
        ('other', 55, True),
        ('other', -55, True),  # its clock is ahead
        ('other', 65, False),
        ('other', -65, False),
        (HERE, 5, False),  # the kernel knows that it has ended
    ],
)
def test_a_record_counts_for_a_minute_on_another_host(tmp_path, host, age, refused):
    write_record(tmp_path, host, age)
    if refused:
        with pytest.raises(ValueError, match='process 123 on host other'):
            lock(tmp_path).__enter__()
    else:
        with lock(tmp_path):
            assert json.loads((tmp_path / '.lock.json').read_text())['host'] == HERE


@pytest.mark.parametrize('content', [b'', b'\xff', b'[1]', b'{"host": "other", "time": "now"}'])
def test_a_damaged_record_does_not_count(tmp_path, content):
    (tmp_path / '.lock.json').write_bytes(content)
    with lock(tmp_path):
        pass


def test_without_locks_in_the_file_system_the_record_counts(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    write_record(tmp_path, HERE, age=5)
    with pytest.raises(ValueError, match=f'process 123 on host {HERE}'):
        lock(tmp_path).__enter__()
    write_record(tmp_path, HERE, age=65)
    with lock(tmp_path):
        pass


def test_the_record_is_renewed_unless_another_host_has_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'RENEW_SECONDS', 0.02)
    record = tmp_path / '.lock.json'
    with lock(tmp_path):
        first = json.loads(record.read_text())['time']
        deadline = time.monotonic() + 10
        while json.loads(record.read_text())['time'] == first:
            assert time.monotonic() < deadline
        write_record(tmp_path, 'other', age=0)
        time.sleep(0.1)
        assert json.loads(record.read_text())['host'] == 'other'
    assert record.exists()


def test_a_lock_without_its_record_yet_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda _: write_record(tmp_path, HERE, age=0))
    with (tmp_path / '.lock').open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_record(tmp_path, HERE, age=3600, process=7)  # of a run that was killed
        with pytest.raises(ValueError, match='process 123 on'):
            lock(tmp_path).__enter__()
