import contextlib
import os
import socket
import threading
import time

import jax
import pytest

from experiments import command_line
from experiments.training import watch

pytestmark = pytest.mark.smoke


class Ended(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def ends(monkeypatch):
    """A watch that has joined, whose process ends by an exception; and what it writes."""
    written = []

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(watch, 'WATCH', watch.Watch())
    monkeypatch.setattr(command_line, '_failures', [])
    monkeypatch.setattr(watch, '_GRACE_SECONDS', 0.0)
    monkeypatch.setattr(os, '_exit', end)
    monkeypatch.setattr(os, 'write', lambda _, line: written.append(line.decode().strip()))
    watch.WATCH.joined = True
    return written


def test_the_end_of_another_process_ends_this_one_with_a_line(ends):
    with pytest.raises(Ended, match='1'):
        watch.WATCH.lost(3, 'a')
    assert ends == [
        'error: process 3 on host a has ended, and the others end with it; '
        'the same command in all of them resumes from the last checkpoint'
    ]


@pytest.mark.parametrize('changes', [dict(joined=False), dict(ending=True)])
def test_before_and_after_the_run_others_may_end(ends, changes):
    vars(watch.WATCH).update(changes)
    watch.WATCH.lost(3, 'a')
    assert ends == []


def test_a_process_that_alone_has_failed_does_not_wait(ends, capsys):
    watch.WATCH.leave()  # nothing has failed
    with pytest.raises(SystemExit):
        command_line.fail('no such data', 2)
    with pytest.raises(Ended, match='2'):
        watch.WATCH.leave()
    watch.WATCH.together = True  # all stop after a checkpoint
    watch.WATCH.leave()
    watch.WATCH.lost(3, 'a')
    assert ends == [] and capsys.readouterr().err == 'error: no such data\n'


def test_an_error_that_may_be_the_death_of_another_waits_for_the_news(ends, monkeypatch):
    slept = []
    monkeypatch.setattr(time, 'sleep', slept.append)
    for error in (jax.errors.JaxRuntimeError('closed by peer'), ValueError('ours')):
        with pytest.raises(type(error)), watch.others_first():
            raise error
    assert slept == [watch._GRACE_SECONDS]


@pytest.mark.parametrize('killed', [True, False])
def test_connections_are_passed_on_until_one_side_ends(monkeypatch, killed):
    lost = threading.Event()
    told = []

    class Told(watch.Watch):
        def lost(self, process, host):
            told.append((process, host))
            lost.set()

    monkeypatch.setattr(watch, 'WATCH', Told())
    with contextlib.ExitStack() as stack:

        def listen():
            server = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return server

        outer, inner, own = listen(), listen(), listen()  # two of process 0, and one of process 3
        watch._serve(outer, lambda x: watch._pass_in(x, inner.getsockname()[1]))
        watch._serve(own, lambda x: watch._pass_out(x, outer.getsockname(), 'a', 3))

        socket.create_connection(outer.getsockname()).close()  # only looks whether it is there
        client = stack.enter_context(socket.create_connection(own.getsockname(), timeout=10))
        client.sendall(b'to process 0')
        service = stack.enter_context(inner.accept()[0])
        service.settimeout(10)
        assert service.recv(100) == b'to process 0'
        service.sendall(b'x' * 200_000)
        received = b''
        while len(received) < 200_000:
            received += client.recv(1 << 16)
        assert received == b'x' * 200_000 and told == []

        # One side's jax hangs up: to the other side, that process is lost.
        (service if killed else client).close()
        assert lost.wait(10)
        assert (client if killed else service).recv(1) == b''
        assert told == [(0, 'a') if killed else (3, socket.gethostname())]


@pytest.mark.parametrize('address', ['host', 'host:', ':1', 'host:http'])
def test_an_address_that_is_none(address):
    with pytest.raises(ValueError, match=f"coordinator is '{address}', it must be host:port"):
        watch.initialize(address, 2, 0)


def test_a_port_that_is_taken():
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f'coordinator localhost:{port}: .*in use'):
            watch.initialize(f'localhost:{port}', 2, 0)
