import os
import signal
import threading

import jax
import pytest

from experiments.training import parallel, stopping, watch

pytestmark = pytest.mark.smoke


def test_several_processes_stop_a_step_after_one_of_them_was_asked(monkeypatch):
    """Reading the answer of the step before, each of them comes to it at the same step."""
    said, read = [], []

    class Answer:
        def __init__(self, flag):
            self.flag = flag

        def __bool__(self):
            read.append(len(said))
            return self.flag

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(parallel, 'any_process', lambda flag: said.append(flag) or Answer(flag))
    monkeypatch.setattr(watch.WATCH, 'together', False)
    for noticed_at in (1, 3):  # the second run begins anew
        said.clear(), read.clear()
        asked = stopping.Preemption()
        for step in range(1, noticed_at + 1):
            asked.noticed = step == noticed_at
            assert not asked.should_stop() and not watch.WATCH.together
        assert asked.should_stop() and watch.WATCH.together
        assert said == [False] * (noticed_at - 1) + [True, True]
        assert read == list(range(2, noticed_at + 2))  # one behind what the devices work on


def test_any_process_is_told_by_the_devices():
    assert [bool(parallel.any_process(flag)) for flag in (False, True)] == [False, True]


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
