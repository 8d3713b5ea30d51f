"""Which kernels the devices ran, and for how long: from a trace of jax's profiler."""

import bisect
import collections
import contextlib
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.paths import copy_files, in_bucket
from experiments.training import parallel
from perceiver_jax.errors import Refused

_WARM_UP = 2  # updates of a start that are not profiled: compilation, and what comes of it

# XLA's operations that run others, which have events of their own.
_CONTROL = ('while', 'conditional', 'call')


class Kernel(NamedTuple):
    """What has the same name on the devices of this process."""

    name: str  # without the number that the compiler adds
    calls: int
    seconds: float  # of all calls together


class Profile(NamedTuple):
    """The kernels of a trace."""

    kernels: list[Kernel]  # the costliest first
    seconds: float  # of all kernels together; what runs at the same time counts each
    num_devices: int  # on which they ran


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Writes a trace into a folder, which TensorBoard, XProf and Perfetto show as well.

    Args:
      folder: The folder; a trace that it holds already stays.

    Yields:
      Nothing. What runs within is traced: wait for the devices before the end.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of a function: slow, and larger than all the rest
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield


def read_profile(folder: Path) -> Profile:
    """Reads the newest trace below a folder.

    Args:
      folder: What `traced` was given.

    Returns:
      The kernels of the devices of the process that wrote the trace.

    Raises:
      FileNotFoundError: There is no trace.
    """
    traces = sorted(Path(folder).rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime_ns)
    if not traces:
        raise FileNotFoundError(f'no trace below {folder}')
    return profile_of(jax.profiler.ProfileData.from_file(str(traces[-1])))


def profile_of(data: jax.profiler.ProfileData) -> Profile:
    """Adds up the kernels of a trace.

    Args:
      data: The trace.

    Returns:
      The kernels by name.
    """
    calls: collections.Counter[str] = collections.Counter()
    nanoseconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    devices = set()
    with warnings.catch_warnings():  # Python 3.12 misses an attribute of ProfileData's types
        warnings.simplefilter('ignore', DeprecationWarning)
        for device, name, duration in _kernel_events(data):
            devices.add(device)
            calls[name] += 1
            nanoseconds[name] += duration
    kernels = [Kernel(name, calls[name], ns / 1e9) for name, ns in nanoseconds.items()]
    kernels.sort(key=lambda kernel: kernel.seconds, reverse=True)
    return Profile(kernels, sum(kernel.seconds for kernel in kernels), len(devices))


def kernel_table(profile: Profile, steps: int, rows: int = 10) -> str:
    """Makes a table of the costliest kernels.

    Args:
      profile: The kernels.
      steps: During how many steps they ran.
      rows: How many kernels to list.

    Returns:
      Lines of milliseconds a step, share of all kernels, calls a step and name, with a line of what
      all kernels take. Milliseconds and calls are the mean over the devices.
    """
    whole, runs = profile.seconds or 1.0, steps * max(profile.num_devices, 1)
    lines = [f'{"ms a step":>10} {"share":>6} {"calls":>8}  kernel']
    for name, calls, seconds in profile.kernels[:rows]:
        share = f'{seconds / whole:.1%}'
        lines.append(f'{1e3 * seconds / runs:10.2f} {share:>6} {calls / runs:8,.1f}  {name:.70}')
    calls, seconds = sum(kernel.calls for kernel in profile.kernels), profile.seconds
    all_of_them = f'all {len(profile.kernels)} kernels'
    lines.append(f'{1e3 * seconds / runs:10.2f} {"":6} {calls / runs:8,.1f}  {all_of_them}')
    return '\n'.join(lines)


def check_fits(num_steps: int, evaluate_every_steps: int) -> None:
    """Raises Refused if as many updates do not come one after the other, without an evaluation.

    Args:
      num_steps: How many updates to profile.
      evaluate_every_steps: Updates from one evaluation to the next.
    """
    if num_steps > evaluate_every_steps:
        raise Refused(
            f'--profile={num_steps}: at most config.train.evaluate_every_steps, '
            f'{evaluate_every_steps} updates lie between two evaluations'
        )


class UpdatesProfile:
    """Traces some updates of a run, without an evaluation; prints what they spent their time on.

    They come as soon as possible. Only the main process traces, and its own devices.
    """

    def __init__(
        self,
        folder: Path,
        num_steps: int,
        *,
        first_step: int,
        total_steps: int,
        evaluate_every_steps: int,
    ):
        """Chooses the updates.

        Args:
          folder: Where the trace is written to.
          num_steps: How many updates to profile; 0 for none.
          first_step: Number of the first update of this start.
          total_steps: Number of the run's last update.
          evaluate_every_steps: Updates from one evaluation to the next.
        """
        first = first_step + _WARM_UP
        rest = -first % evaluate_every_steps + 1  # updates up to the evaluation
        self._first = first if num_steps <= rest else first + rest
        self._last = min(self._first + num_steps - 1, total_steps)
        self._folder = folder
        # The profiler writes files: those for a bucket go into a temporary folder first.
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._num_steps = num_steps if parallel.is_main_process() else 0
        self._trace = contextlib.ExitStack()
        self._steps = -1  # updates that were traced; -1 before the trace

    def begin(self, step: int, train_state: Any) -> None:
        """Begins the trace, if an update is the first.

        Args:
          step: Number of the update, which is about to be made.
          train_state: The state before it, to wait for.
        """
        if self._num_steps and step == self._first:
            jax.block_until_ready(train_state)
            if in_bucket(self._folder):
                self._temporary = tempfile.TemporaryDirectory()
            self._trace.enter_context(traced(self._local()))
            self._steps = 0

    def end(self, step: int, train_state: Any) -> float:
        """Ends the trace, if an update was the last, and prints the kernels.

        Args:
          step: Number of the update.
          train_state: The state after it, to wait for.

        Returns:
          Seconds that the run has stood still for it.
        """
        if self._steps < 0 or not self._num_steps:
            return 0.0
        self._steps += 1
        if step < self._last:
            return 0.0
        jax.block_until_ready(train_state)
        start = time.monotonic()
        self.close()
        return time.monotonic() - start

    def close(self) -> None:
        """Ends the trace and prints the kernels; says so if the run has ended before."""
        wanted, self._num_steps = self._num_steps, 0
        if not wanted:
            return
        self._trace.close()
        made = max(self._steps, 0)
        short = f'; the run ended before there were {wanted}' if made < wanted else ''
        if not made:
            print(f'No update was profiled{short}.', flush=True)
            return
        table = kernel_table(read_profile(self._local()), made)
        if self._temporary is not None:
            copy_files(self._local(), self._folder)
            self._temporary.cleanup()
        updates = f'{made} update' + ('s' if made > 1 else '')
        print(f'\n{table}\nThe trace of {updates} is in {self._folder}{short}.', flush=True)

    def _local(self) -> Path:
        """Where the profiler writes to."""
        return self._folder if self._temporary is None else Path(self._temporary.name)


def _kernel_events(data: jax.profiler.ProfileData) -> Iterator[tuple[Any, str, float]]:
    """Yields the device, the readable name and the nanoseconds of each kernel that ran."""
    planes = {plane.name: plane for plane in data.planes}
    gpus = {name: plane for name, plane in planes.items() if 'GPU' in name}
    tpus = {name: plane for name, plane in planes.items() if name.startswith('/device:TPU:')}
    for name, plane in gpus.items():
        for line in plane.lines:
            if line.name.startswith('Stream'):
                for event in line.events:
                    yield name, _readable(event.name), event.duration_ns
    for name, plane in tpus.items():
        for line in plane.lines:
            if line.name == 'XLA Ops':
                operations = [(name, x.name, x.start_ns, x.duration_ns) for x in line.events]
                yield from _leaves(operations)
    if not gpus and not tpus and '/host:CPU' in planes:
        yield from _leaves(_operations_of_cpu(planes['/host:CPU']))


def _operations_of_cpu(plane: Any) -> Iterator[tuple[Any, str, float, float]]:
    """Yields the run, the name, the begin and the nanoseconds of each operation of XLA:CPU.

    They stand in the lines of several thread pools. An operation that other threads finish has an
    event that only begins it; another one, 'end: ...', tells by its number when it is over.
    """
    begun, ends = {}, {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith('end: '):
                ends[dict(event.stats).get('_c')] = event.start_ns
            elif 'hlo_op' in (stats := dict(event.stats)):
                key = stats.get('_p', (line.name, event.start_ns))
                begun[key] = stats.get('device_ordinal', 0), event
    for key, (device, event) in begun.items():
        end = max(ends.get(key, 0), event.start_ns + event.duration_ns)
        yield device, event.name, event.start_ns, end - event.start_ns


def _leaves(
    events: Iterable[tuple[Any, str, float, float]],
) -> Iterator[tuple[Any, str, float]]:
    """Leaves out loops, branches and calls during which other operations of their device ran."""
    by_device = collections.defaultdict(list)
    for device, name, start, duration in events:
        by_device[device].append((start, duration, _readable(name)))
    for device, operations in by_device.items():
        starts = sorted(start for start, _, _ in operations)
        for start, duration, name in operations:
            inner = bisect.bisect_right(starts, start)  # the next operation that begins
            wraps = inner < len(starts) and starts[inner] < start + duration
            if not (wraps and name in _CONTROL):
                yield device, name, duration


def _readable(name: str) -> str:
    """Returns the name of a kernel without its number: 'loop_fusion_12', '%copy.3 = f32[] ..'."""
    name = name.partition(' = ')[0].removeprefix('%')  # a TPU's are whole instructions
    name = name.removeprefix('void ').replace('(anonymous namespace)::', '')
    name = name.partition('(')[0] or name  # without the arguments of a function in C++
    return re.sub(r'([._]\d+|\.clone|\.remat\d*)+$', '', name)
