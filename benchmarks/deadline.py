"""Measures within a time, each case in a process of its own that is killed when its time is up.

The process that starts the others never asks jax for a device: one that has asked holds most of a
GPU's memory, and those that measure find none.
"""

import contextlib
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Build, Program

MIN_RUNS, MIN_SECONDS, MAX_RUNS = 5, 0.5, 200  # of a program, after one that is not counted
PROFILED_RUNS = 3


class Failed(NamedTuple):
    """An implementation that was not measured to its end.

    Attributes:
      implementation: Its name.
      error: What happened, in one line.
    """

    implementation: str
    error: str


class Measured(NamedTuple):
    """One pass of one implementation; see `Program`.

    Attributes:
      implementation: Its name.
      which: The pass.
      seconds: Median of its runs.
      peak_bytes: Peak of the device's memory; None where another program ran in the process before.
      flops: Operations of one run; None if the rate is not asked for.
      more: Further numbers.
    """

    implementation: str
    which: str
    seconds: float
    peak_bytes: int | None
    flops: float | None
    more: dict[str, float]


class Profiled(NamedTuple):
    """Where the time of what was measured last goes.

    Attributes:
      implementation: Its name.
      kernels: The costliest kernels of a run.
    """

    implementation: str
    kernels: list[dict[str, Any]]


def measured(
    implementations: Mapping[str, tuple[Build, dict]],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    profiled: bool = False,
) -> Iterator[Measured | Profiled | Failed]:
    """Measures implementations of a case, one after the other in one process.

    Args:
      implementations: Builder and its arguments, by the implementation's name.
      seconds: When the process is killed.
      environment: Variables that the process has besides those of this one.
      profiled: Whether to tell the costliest kernels of each pass.

    Yields:
      Each pass as soon as it is measured, its profile, and each implementation that failed.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    arguments = (theirs, dict(implementations), profiled)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    end = time.monotonic() + seconds
    unfinished = list(implementations)
    with _environment(environment or {}):
        process.start()
    theirs.close()  # so that the pipe ends with the process
    try:
        while unfinished:
            if not ours.poll(max(end - time.monotonic(), 0)):
                error = f'killed after {seconds:.0f} s'
                break
            answer = ours.recv()
            if isinstance(answer, str):  # the name of one that was measured to its end
                unfinished.remove(answer)
                continue
            if isinstance(answer, Failed):
                unfinished.remove(answer.implementation)
            yield answer
        else:
            process.join(2)  # it ends by itself
    except (EOFError, OSError):
        process.join()
        error = f'the process ended with exit code {process.exitcode}'
    finally:
        process.kill()
        process.join()  # a GPU's memory is free again then
    yield from (Failed(name, error) for name in unfinished)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a process that is started: jax reads them when it is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _serve(pipe, implementations: dict[str, tuple[Build, dict]], profiled: bool) -> None:
    fresh = True
    for name, (build, arguments) in implementations.items():
        try:
            programs = build(**arguments)
            while programs:
                which = next(iter(programs))
                program = programs.pop(which)  # and its arrays are freed before the next one
                pipe.send(_measure(name, which, program, fresh))
                fresh = False
                if profiled:
                    pipe.send(Profiled(name, costliest_kernels(program.run)))
                del program
            pipe.send(name)
        except Exception as error:
            fresh = False
            pipe.send(Failed(name, f'{type(error).__name__}: {error}'))
        programs = None
        gc.collect()


def _measure(name: str, which: str, program: Program, fresh: bool) -> Measured:
    program.run()
    peak_bytes = program.peak_bytes() if fresh and program.peak_bytes else None
    times: list[float] = []
    while len(times) < MIN_RUNS or (sum(times) < MIN_SECONDS and len(times) < MAX_RUNS):
        start = time.perf_counter()
        program.run()
        times.append(time.perf_counter() - start)
    more = dict(program.more)
    if program.compile_seconds is not None:
        more = {'compile_seconds': program.compile_seconds, **more}
    median = statistics.median(times)
    return Measured(name, which, median, peak_bytes, program.flops, more)


def costliest_kernels(run: Callable[[], object], number: int = 20) -> list[dict[str, Any]]:
    """Traces some runs of a program.

    Args:
      run: Runs it; returns when the work is done.
      number: How many kernels to tell.

    Returns:
      The costliest first, each with its `name`, `ms` and `calls` of a run, and its `share` of the
      time of all kernels.
    """
    from experiments.training import profiling

    with tempfile.TemporaryDirectory() as folder:
        with profiling.traced(Path(folder)):
            for _ in range(PROFILED_RUNS):
                run()
        profile = profiling.read_profile(Path(folder))
    return [
        {
            'name': kernel.name,
            'ms': 1e3 * kernel.seconds / PROFILED_RUNS,
            'calls': kernel.calls / PROFILED_RUNS,
            'share': kernel.seconds / profile.seconds,
        }
        for kernel in profile.kernels[:number]
    ]
