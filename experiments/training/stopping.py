"""Stopping: a run that is asked to, by SIGTERM or Ctrl-C, ends after a step, with a checkpoint.

Several processes stop together, after the same step.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.training import parallel, watch

_ASK_SECONDS = 0.1  # between two looks whether the run was asked to stop


class StoppedEarly(KeyboardInterrupt):
    """A run was asked to stop when it had made nothing that could be lost.

    XLA may still be at work in a thread: the process must end by `command_line.end_at_once`.
    """

    def __init__(self, by_ctrl_c: bool):
        """Makes the exception.

        Args:
          by_ctrl_c: Whether it was asked by Ctrl-C, not by SIGTERM.
        """
        self.by_ctrl_c = by_ctrl_c
        how = 'interrupted' if by_ctrl_c else 'Stopped by SIGTERM'
        super().__init__(
            f'{how} before the first update of this start: it has saved nothing, and the same '
            'command begins where it began'
        )


@dataclasses.dataclass
class Preemption:
    """Whether the run was asked to stop.

    Attributes:
      noticed: Whether this process was asked.
      by_ctrl_c: Whether it was by Ctrl-C, not by SIGTERM.
      leaves: Whether what the run does now will be left when it is asked.
    """

    noticed: bool = False
    by_ctrl_c: bool = False
    leaves: bool = False
    # Whether any process was asked, a step ago; None: no step ago.
    _any_noticed: jax.Array | None = dataclasses.field(default=None, init=False, repr=False)

    def should_stop(self) -> bool:
        """Returns whether to stop after this step; all processes ask, and have the same answer.

        Several processes stop a step later than one: what any of them noticed is exchanged by the
        devices behind this step's update, and read behind that of the next, so that none waits.
        """
        if jax.process_count() == 1:
            return self.noticed
        before, self._any_noticed = self._any_noticed, parallel.any_process(self.noticed)
        watch.WATCH.together = before is not None and bool(before)
        return watch.WATCH.together

    def unless_stopped(self, function: Callable, *arguments: Any) -> Any:
        """Calls what takes long and leaves nothing behind, until this process is asked to stop.

        Python runs handlers of signals in the main thread, between two of its instructions, and all
        of a compilation is one: the function is called in another thread. Several processes, which
        stop after a common step, wait for the end of it.

        Args:
          function: A function, such as one that compiles at its first call.
          *arguments: Its arguments.

        Returns:
          What the function returned, computed by the devices.

        Raises:
          StoppedEarly: This process was asked to stop; the function may still be at work.
          Exception: What the function raised.
        """

        def work() -> Any:
            return jax.block_until_ready(function(*arguments))

        if jax.process_count() > 1:
            return work()
        done: concurrent.futures.Future = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self.leaves = True
        try:
            threading.Thread(target=run, daemon=True).start()
            while not self.noticed:
                if concurrent.futures.wait([done], timeout=_ASK_SECONDS).done:
                    return done.result()
            raise StoppedEarly(self.by_ctrl_c)
        finally:
            self.leaves = False


@contextlib.contextmanager
def preemption() -> Iterator[Preemption]:
    """Turns SIGTERM and the first Ctrl-C into a question that the loop asks after every step.

    A second Ctrl-C ends at once. Of several processes it is enough that one is asked.

    Yields:
      What was asked for so far.
    """
    asked = Preemption()

    def stop(*_: Any) -> None:
        asked.noticed = True

    def end_now(*_: Any) -> None:
        watch.WATCH.together = False
        logging.disable()  # what is interrupted, such as Orbax, would log it
        raise KeyboardInterrupt

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, end_now)
        asked.noticed = asked.by_ctrl_c = True
        if not asked.leaves:
            # Not `print`, which must not be called in the middle of another `print`.
            os.write(
                2, b'\nStopping after this step, with a checkpoint; Ctrl-C again ends at once.\n'
            )

    handlers: dict[signal.Signals, Callable] = {}
    if threading.current_thread() is threading.main_thread():  # it alone may set handlers
        handlers[signal.SIGTERM] = stop
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as
            handlers[signal.SIGINT] = interrupt  # in the background of a script
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)
