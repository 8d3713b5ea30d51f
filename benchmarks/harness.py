"""Runs implementations of the same case against each other, and writes what was measured.

Each implementation runs in a process of its own, so that its memory is measured alone. Their runs
are interleaved: whatever slows the machine down slows all of them. Memory is what the first run of
a compiled program adds to the process, beyond weights and inputs; on a GPU, the device's peak.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.training.workdir import write_json

RESULTS = Path(__file__).parent / 'results'
PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'numpy', 'torch', 'transformers')


class Program(NamedTuple):
    """One pass of one implementation, ready to be run.

    Attributes:
      run: Runs the pass; returns when the work is done.
      compile_seconds: Seconds of tracing, lowering and compilation; None if nothing was compiled.
      flops: Operations of one run; None if the rate is not asked for.
      peak_bytes: Returns the peak of a device's memory; None measures the process's memory.
      more: Further numbers for its row; `deadline` writes them.
    """

    run: Callable[[], object]
    compile_seconds: float | None = None
    flops: float | None = None
    peak_bytes: Callable[[], int] | None = None
    more: Mapping[str, float] = {}


# Builds the programs of an implementation: pass -> Program. Takes the case's arguments. It is
# called in the process that runs them, so it is a function of a module.
Build = Callable[..., dict[str, Program]]


def compiled(function: Callable, *arguments, flops: float | None = None, donate=()) -> Program:
    """Compiles a jax function into a program.

    Args:
      function: The function; it returns the new values of its donated arguments first.
      *arguments: Its arguments.
      flops: Operations of one run; None if the rate is not asked for.
      donate: Indices of the arguments that are donated: the next run takes what was returned.
    """
    import jax

    start = time.perf_counter()
    executable = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    state = list(arguments)

    def run():
        result = jax.block_until_ready(executable(*state))
        for i, place in enumerate(donate):
            state[place] = result[i]
        return result

    statistics = jax.devices()[0].memory_stats()  # None on CPUs
    peak = statistics and (lambda: jax.devices()[0].memory_stats()['peak_bytes_in_use'])
    temporary = executable.memory_analysis().temp_size_in_bytes
    return Program(run, seconds, flops, peak, {'temporary_bytes': temporary})


def compare(
    name: str,
    case: str,
    implementations: dict[str, tuple[Build, dict]],
    *,
    repeats: int,
    report: 'Report',
    with_compilation: bool = False,
    runs: bool = True,
) -> None:
    """Measures all passes of a case in all implementations and adds rows to the report.

    Args:
      name: Name of the benchmark, for errors.
      case: What is computed, such as '512 x 50176 x 261'.
      implementations: Builder and its arguments, by the implementation's name.
      repeats: Runs of each pass after one that is not counted; with 0, that one counts.
      report: What the rows are added to.
      with_compilation: Whether to add rows of the seconds that compiling all passes took.
      runs: Whether to run the passes; False only compiles them.

    Raises:
      RuntimeError: A process ended, or an exception was raised in it.
    """
    context = multiprocessing.get_context('spawn')
    workers, answers, passes = {}, {}, {}

    def what(implementation, *more):
        return ', '.join((name, case, implementation, *more))

    with contextlib.ExitStack() as stack:
        for implementation, (build, arguments) in implementations.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, build, arguments))
            process.start()
            stack.callback(process.kill)
            workers[implementation] = ours, process
            if with_compilation:  # one at a time, on all cores
                answers[implementation] = _ask(*workers[implementation], what(implementation))
        for implementation in workers.keys() - answers.keys():
            answers[implementation] = _ask(*workers[implementation], what(implementation))
        for implementation in implementations:
            answer = answers[implementation]
            for which in answer:
                passes.setdefault(which, []).append(implementation)
            if with_compilation and all(answer.values()):
                report.add(case, 'compile', implementation, sum(answer.values()))
        for which, names in passes.items() if runs else ():
            seconds, peaks, flops = {n: [] for n in names}, {}, {}
            for i in range(repeats + 1):
                for implementation in names:
                    pipe, process = workers[implementation]
                    pipe.send(which)
                    answer = _ask(pipe, process, what(implementation, which))
                    if i == 0:
                        peaks[implementation], flops[implementation] = answer[1:]
                    if i > 0 or not repeats:
                        seconds[implementation].append(answer[0])
            for implementation in names:
                median = statistics.median(seconds[implementation])
                report.add(
                    case,
                    which,
                    implementation,
                    median,
                    peaks[implementation],
                    flops[implementation],
                )


def _ask(pipe, process, what: str):
    while not pipe.poll(1):
        if not process.is_alive():
            raise RuntimeError(f'{what}: the process ended with exit code {process.exitcode}')
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise RuntimeError(f'{what}: {answer!r}') from answer
    return answer


def _serve(pipe, build: Build, arguments: dict) -> None:
    try:
        programs = build(**arguments)
        pipe.send({which: program.compile_seconds for which, program in programs.items()})
        new = set(programs)
        while True:
            which = pipe.recv()
            program, peak = programs[which], None
            before = _start_peak() if which in new else None
            start = time.perf_counter()
            result = program.run()
            seconds = time.perf_counter() - start
            if program.peak_bytes:
                peak = program.peak_bytes()
            elif before is not None:
                peak = _memory('VmHWM') - before
            new.discard(which)
            del result
            pipe.send((seconds, peak, program.flops))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f'{type(error).__name__}: {error}'))


def _start_peak() -> int | None:
    """Resets the largest resident size; returns the present one, None where it is not known."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        return _memory('VmRSS')
    except (OSError, AttributeError):
        return None


def _memory(key: str) -> int:
    (kilobytes,) = re.findall(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * int(kilobytes)


class Report:
    """Rows of one benchmark: printed as they come, written when it is complete or after each.

    Attributes:
      rows: What was measured, as it is written.
      not_measured: Why not, by case and implementation; written if anything is missing.
    """

    def __init__(self, name: str, device: str, folder: Path | None = None):
        """Prints the head of the table.

        Args:
          name: Name of the benchmark.
          device: What `device()` returned.
          folder: Where `write` writes; None: benchmarks/results.
        """
        self.name, self.device, self.folder = name, device, folder
        self.rows: list[dict[str, Any]] = []
        self.not_measured: dict[str, str] = {}
        print(f'\n{name} on {device}')
        self._print('case', 'pass', 'implementation', 'seconds', 'memory', '')

    def add(
        self,
        case: str,
        which: str,
        implementation: str,
        seconds: float,
        peak_bytes: int | None = None,
        flops: float | None = None,
        **more: float,
    ) -> None:
        """Adds a row.

        Args:
          case: What is computed.
          which: The pass, such as 'forward'.
          implementation: Name of the implementation.
          seconds: Seconds of one run.
          peak_bytes: Memory that a run adds; None if it is not known.
          flops: Operations of one run; None if the rate is not asked for.
          **more: Further numbers for the file and the printed line.
        """
        row = {
            'case': case,
            'pass': which,
            'implementation': implementation,
            'seconds': seconds,
            'peak_bytes': peak_bytes,
        }
        more = {**({'flops_per_second': flops / seconds} if flops else {}), **more}
        self.rows.append({**row, **more})
        memory = '' if peak_bytes is None else f'{peak_bytes / 1e6:,.0f} MB'
        rates = '  '.join(f'{key} {value:,.4g}' for key, value in more.items())
        self._print(case, which, implementation, f'{seconds:.3g}', memory, rates)

    def write(self) -> Path:
        """Writes <device>_<name>.json, and returns its path."""
        slug = re.sub(r'[^a-z0-9]+', '-', self.device.lower()).strip('-')
        path = (self.folder or RESULTS) / f'{slug}_{self.name}.json'
        path.parent.mkdir(exist_ok=True)
        content = {'device': self.device, 'versions': versions(), 'rows': self.rows}
        if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
            content['compilation_cache'] = True  # programs may have been read, not compiled
        if self.not_measured:
            content['not_measured'] = self.not_measured
        write_json(path, content)
        return path

    def _print(self, *cells: str) -> None:
        widths = (36, 22, 24, 9, 11, 0)
        line = ' '.join(f'{cell:<{width}}' for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip(), flush=True)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the measured packages that are installed."""
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device() -> str:
    """Returns the machine's name, such as 'cpu x2' or 'NVIDIA H100 80GB HBM3 x1'."""
    # Asked in a process of its own: one that has asked holds a part of a GPU's memory.
    code = 'import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind)'
    answer = subprocess.run(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, check=True, text=True
    )
    platform_name, count, kind = answer.stdout.split(maxsplit=2)
    if platform_name == 'cpu':
        return f'cpu x{len(os.sched_getaffinity(0))}'
    return f'{kind.strip()} x{count}'
