"""Runs a module that is killed just before it calls the system: python -m tests.faults.killed_at.

python -m tests.faults.killed_at CALL NUMBER MODULE [ARGUMENT ...]

CALL is a function of `os`, such as fsync, rename or replace; NUMBER says before which call of it.
"""

import os
import runpy
import signal
import sys


def kill_before(call, number):
    """Replaces a function of `os` by one that kills this process instead of the n-th call."""
    function, calls = getattr(os, call), 0

    def count(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(os, call, count)


if __name__ == '__main__':
    _, call, number, module, *arguments = sys.argv
    kill_before(call, int(number))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
