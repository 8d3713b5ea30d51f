"""How a step that is written once, for a batch, runs on all devices of all processes.

A step calls `average` where the devices must agree. `Jit` compiles it for the whole global batch,
which the compiler cuts over the devices: there is nothing to average. `Pmap` runs it on each
device's part of the batch and averages over the axis `AXIS`. Beside them: joining the processes of
a run, and what a process asks about the others.
"""

import collections
import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.training import watch
from perceiver_jax.errors import Refused

AXIS = 'data'  # the one mesh axis, and the axis name that a pmapped step is bound to

# Where jax joins the processes itself, it alone notices that one has died: after this time.
_HEARTBEAT_SECONDS = 25

_FOUND_SECONDS = 300  # in which the first worker's name must be known to the others, as in jax

# What helps where jax does not find the processes.
_TELL = 'tell each of them --coordinator=host:port, --num_processes and --process_id'

Tree = Any  # nested dictionaries, tuples and NamedTuples of arrays


class Jit:
    """Arrays are global: state is replicated on every device, batches are sharded by example.

    Attributes:
      replicated: How the state lies on the devices.
      examples: How batches do, `[b, ...]`.
      micro_batches: How batches in parts do, `[k, b / k, ...]`.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Makes the mesh.

        Args:
          devices: Devices of all processes to run on; None takes all of them.
        """
        # Auto: under the explicit axes that are jax's default from 0.11 on, products of replicated
        # and sharded arrays (the latents and the inputs) are refused.
        chosen = jax.devices() if devices is None else devices
        mesh = Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.examples = NamedSharding(mesh, PartitionSpec(AXIS))
        self.micro_batches = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def average(self, tree: Tree) -> Tree:
        """Returns the mean over the devices; to be called inside a compiled step."""
        return tree

    def compile_update(self, update: Callable) -> Callable:
        """Compiles `update(state, batch) -> (state, metrics)`; the state passed in is donated."""
        return jax.jit(self._in_mesh(update), donate_argnums=0, out_shardings=self.replicated)

    def compile_predict(self, predict: Callable) -> Callable:
        """Compiles `predict(params, state, batch) -> {name: [examples, ...]}`."""
        return jax.jit(self._in_mesh(predict), out_shardings=self.examples)

    def _in_mesh(self, function: Callable) -> Callable:
        """Tells what is traced of the mesh: compilers divide no kernel, splash attention itself."""
        mesh = self.replicated.mesh.abstract_mesh

        def traced(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh):
                return function(*arguments)

        traced.__name__ = getattr(function, 'func', function).__name__  # of the compiled program
        return traced

    def replicate(self, tree: Tree) -> Tree:
        """Puts host arrays, equal in all processes, on every device."""

        def put(x):
            x = np.asarray(x)
            return jax.make_array_from_process_local_data(self.replicated, x, x.shape)

        return jax.tree.map(put, tree)

    def put_batch(self, batch: Tree) -> Tree:
        """Puts this process's part of a batch, `[b, ...]`, on its devices."""
        return _put_parts(batch, self.examples)

    def put_micro_batches(self, batch: Tree, count: int) -> Tree:
        """Puts this process's part of a batch on its devices as `[count, b / count, ...]`."""
        return _put_parts(_split(batch, count), self.micro_batches)

    def fetch(self, tree: Tree) -> Tree:
        """Copies replicated arrays to the host; host arrays pass."""
        return jax.tree.map(np.array, tree)

    def gather(self, outputs: Tree) -> Tree:
        """Brings what a compiled predict returned for all processes' examples to the host."""
        return multihost_utils.process_allgather(outputs, tiled=True)


class Pmap:
    """Arrays are this process's, with its devices as their leading axis; methods as in `Jit`."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Makes the mesh of this process.

        Args:
          devices: Devices of all processes to run on; None takes all of them.
        """
        self._devices = devices
        local = jax.local_devices()
        if devices is not None:
            local = [d for d in devices if d.process_index == jax.process_index()]
        mesh = Mesh(np.asarray(local), (AXIS,), axis_types=(AxisType.Auto,))
        self._per_device = NamedSharding(mesh, PartitionSpec(AXIS))
        self._num_devices = len(local)

    def average(self, tree: Tree) -> Tree:
        """Returns the mean over the devices; to be called inside a compiled step."""

        def mean(x):  # of counters, which are equal everywhere, a mean would make floats
            return jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(mean, tree)

    def compile_update(self, update: Callable) -> Callable:
        """Compiles `update(state, batch) -> (state, metrics)`; the state passed in is donated."""
        return jax.pmap(update, axis_name=AXIS, devices=self._devices, donate_argnums=0)

    def compile_predict(self, predict: Callable) -> Callable:
        """Compiles `predict(params, state, batch) -> {name: [examples, ...]}`."""
        return jax.pmap(predict, axis_name=AXIS, devices=self._devices)

    def replicate(self, tree: Tree) -> Tree:
        """Puts host arrays, equal in all processes, on every device."""
        return self._put(
            jax.tree.map(lambda x: np.broadcast_to(x, (self._num_devices, *np.shape(x))), tree)
        )

    def put_batch(self, batch: Tree) -> Tree:
        """Puts this process's part of a batch, `[b, ...]`, on its devices."""
        return self._put(_split(batch, self._num_devices))

    def put_micro_batches(self, batch: Tree, count: int) -> Tree:
        """Puts this process's part of a batch on its devices as `[count, b / count, ...]`."""
        return self._put(_split(_split(batch, self._num_devices), count, axis=1))

    def fetch(self, tree: Tree) -> Tree:
        """Copies replicated arrays to the host; host arrays pass."""

        def first(x):
            return np.array(x.addressable_data(0))[0] if isinstance(x, jax.Array) else x

        return jax.tree.map(first, tree)

    def gather(self, outputs: Tree) -> Tree:
        """Brings what a compiled predict returned for all processes' examples to the host."""
        flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), outputs)
        return multihost_utils.process_allgather(flat, tiled=True)

    def _put(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.device_put(x, self._per_device), tree)


KINDS: dict[str, type[Jit] | type[Pmap]] = {'jit': Jit, 'pmap': Pmap}


def make(kind: str, devices: Sequence[jax.Device] | None = None) -> Jit | Pmap:
    """Makes the way to run on several devices that `config.parallel` names.

    Args:
      kind: A key of `KINDS`.
      devices: Devices of all processes to run on; None takes all of them.

    Returns:
      A `Jit` or a `Pmap`.

    Raises:
      Refused: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise Refused(f'config.parallel is {kind!r}, it must be one of {", ".join(KINDS)}')
    return KINDS[kind](devices)


def prefetch(batches: Iterable, put: Callable) -> Iterator:
    """Puts batches on the devices, one ahead of the batch that is worked on.

    Args:
      batches: Host batches.
      put: Moves a host batch to the devices: `put_batch` or `put_micro_batches`.

    Yields:
      The batches on the devices, in order.
    """
    ahead: collections.deque = collections.deque()
    for batch in batches:
        ahead.append(put(batch))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run. Call it first; a run of one process needs nothing.

    Args:
      coordinator: 'host:port' of process 0, or 'auto' where jax can find all three itself: on
        Cloud TPUs, under SLURM, Open MPI and Kubernetes. All but Kubernetes, whose API would have
        to be asked, are also found without it.
      num_processes: How many processes run.
      process_id: Which one this is, from 0.

    Raises:
      Refused: Only some of the three are given, the coordinator's address cannot be used, or jax
        cannot join the processes that it should find.
    """
    if (coordinator, num_processes, process_id) == (None, None, None):
        coordinator, num_processes, process_id = _found()
    given = (coordinator, num_processes, process_id)
    # It would take SIGTERM for itself; `stopping` has the processes agree on when to stop.
    jax.config.update('jax_enable_preemption_service', False)
    if coordinator == 'auto':
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
        except (ValueError, RuntimeError) as error:
            raise Refused(f'jax cannot join the processes here: {error}; {_TELL}') from error
        watch.leave_at_once()
    elif coordinator is not None and num_processes is not None and process_id is not None:
        watch.initialize(coordinator, num_processes, process_id)
    elif given != (None, None, None):
        raise Refused(
            'coordinator, num_processes and process_id go together, '
            f'got {coordinator}, {num_processes}, {process_id}'
        )


def say_who_takes_part() -> None:
    """Prints, at the start of a run, how many processes and devices take part in it.

    Raises:
      Refused: The devices belong to several processes, which have not joined.
    """
    processes, devices = jax.process_count(), jax.device_count()
    if processes > 1 and not jax.distributed.is_initialized():
        raise Refused(f'these devices are of {processes} processes, which have not joined; {_TELL}')
    who = f'{processes:,} process{"es" * (processes > 1)}'
    say(f'{who}, {devices:,} device{"s" * (devices > 1)}: {jax.devices()[0].device_kind}')


def is_main_process() -> bool:
    """Returns whether this process writes the files and prints."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, in the main process only."""
    if is_main_process():
        print(line)


def exchange(content: Any) -> list[Any]:
    """Returns what all processes pass, by process; all of them call it.

    Args:
      content: What JSON can hold; the rest becomes text.
    """
    if num_processes() == 1:
        return [content]
    # The rows of a gathered array need not be in the order of the processes.
    text = json.dumps([jax.process_index(), content], default=str).encode()
    lengths = multihost_utils.process_allgather(np.asarray(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    pairs = [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
    return [content for _, content in sorted(pairs, key=lambda pair: pair[0])]


def barrier(name: str) -> None:
    """Waits until all processes have come to the barrier of this name."""
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> jax.Array:
    """Begins to find out whether any process passes True; all of them call it.

    Args:
      flag: What this process has to say.

    Returns:
      Bool `[]`, the same in all processes; to read it waits for what the devices were given before.
    """
    devices, any_of = _any_of_devices()
    return any_of(devices.put_batch(np.full(jax.local_device_count(), flag)))


def check_equal(number: int, what: str) -> None:
    """Raises AssertionError in all processes if the number is not the same in all of them.

    Args:
      number: What this process has come to.
      what: What the number is, for the message.
    """
    multihost_utils.assert_equal(np.asarray(number), f'processes differ in {what}')


def num_processes() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count()


def num_devices() -> int:
    """Returns the number of devices of all processes."""
    return jax.device_count()


def device_name() -> str:
    """Returns the devices of the run, as 'NVIDIA H100 80GB HBM3 x8'."""
    return f'{jax.devices()[0].device_kind} x{jax.device_count()}'


def _found() -> tuple[str | None, int | None, int | None]:
    """Returns what `initialize` takes, as the environment has it; None where one process runs.

    Machines without a TPU are not asked over a network.
    """
    alone, auto = (None, None, None), ('auto', None, None)
    # Not SLURM_NTASKS, which jax counts by: a shell within an allocation has it too.
    for count in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
        if int(os.environ.get(count, '1')) > 1:
            return auto
    told = auto if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') else alone  # by GKE alone
    try:
        # Private: jax has no other way to ask without joining, which one process alone need not.
        from jax._src.clusters import GceTpuCluster, GkeTpuCluster
    except ImportError:
        return told
    try:
        tpu = next((x for x in (GkeTpuCluster, GceTpuCluster) if x.is_env_present()), None)
        if tpu is None or tpu.get_process_count() == 1:
            return alone
        address = tpu.get_coordinator_address(
            timeout_secs=_FOUND_SECONDS,
            override_coordinator_port=os.environ.get('JAX_COORDINATOR_PORT'),
        )
        return address, tpu.get_process_count(), tpu.get_process_id()
    except (ImportError, OSError) as error:  # the server that tells a TPU VM what it is part of
        logging.warning('other workers of this TPU are not looked for: %s', error)
        return told
    except (ValueError, RuntimeError) as error:
        raise Refused(f'jax does not find the workers of this TPU: {error}; {_TELL}') from error


@functools.cache
def _any_of_devices() -> tuple[Jit, Callable]:
    devices = Jit()
    return devices, jax.jit(jnp.any, out_shardings=devices.replicated)


def _put_parts(tree: Tree, sharding: NamedSharding) -> Tree:
    """Makes global arrays of which this process has its part."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def _split(tree: Tree, count: int, axis: int = 0) -> Tree:
    """Cuts an axis in two: `[.., b, ..]` -> `[.., count, b / count, ..]`."""

    def split(x):
        return x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])

    return jax.tree.map(split, tree)
