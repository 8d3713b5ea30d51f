import os
import signal
import threading

import jax
import pytest

from experiments.training import stopping, watch

pytestmark = pytest.mark.smoke


def test_no_step_at_which_several_processes_can_stop_comes_twice_or_is_left_out(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(
        stopping.multihost_utils, 'reached_preemption_sync_point', lambda n: asked.append(n) or True
    )
    monkeypatch.setattr(watch.WATCH, 'together', False)
    for run in (stopping.Preemption(), stopping.Preemption()):
        assert run.should_stop() and run.should_stop()
    assert asked == list(range(asked[0], asked[0] + 4))


def test_work_is_left_when_the_run_is_asked_to_stop():
    released, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with stopping.preemption() as asked:
        assert asked.unless_stopped(max, 3, 5) == 5
        with pytest.raises(ZeroDivisionError):
            asked.unless_stopped(lambda: 1 / 0)
        signalled = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        signalled.start()
        with pytest.raises(stopping.StoppedEarly, match='Stopped by SIGTERM before the first'):
            asked.unless_stopped(released.wait)
    released.set()
    signalled.join()
    assert signal.getsignal(signal.SIGTERM) == before
