"""What a run would need on devices that are not there: its two programs, compiled for them.

Nothing runs. Memory is what the compiler lays out for the very programs that the loop runs; the
time of an update is an estimate, from its operations and a stated share of the devices' peak.
"""

import collections
import copy
import functools
import importlib.metadata
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.pictures.units import size_text
from experiments.planning.targets import GPU_SHARE, SHARE_OF_PEAK, Target
from experiments.tasks import make_task
from experiments.training import loop, parallel
from experiments.training.checks import check_sizes, count_steps
from experiments.training.config_values import MAX_BATCH
from experiments.training.describe import count_jaxpr, short
from experiments.training.evaluate import compile_predict
from experiments.training.optimizer import make_optimizer
from experiments.training.workdir import git_commit, now
from perceiver_jax.chunks import compiling_for
from perceiver_jax.errors import Refused

NUM_BATCHES = 2  # on the devices at a time: the loop puts one there ahead

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_ITEM_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'f64': 8, 's64': 8, 'u64': 8}
_COLLECTIVES = (
    'all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast', 'collective-permute',
    'reduce-scatter',
)  # fmt: skip


class Program(NamedTuple):
    """A compiled step, as one device sees it; sizes in bytes.

    Attributes:
      batch: One batch.
      temporaries: What lives only while the program runs.
      code: The program itself.
      seconds: What the compiler took.
      flops: Operations of all devices, of products and convolutions.
      collectives: `{kind: {count, bytes}}`, those in loops as `{kind} in loops`, of one turn.
    """

    batch: int
    temporaries: int
    code: int
    seconds: float
    flops: int
    collectives: dict[str, dict[str, int]]


class TooLarge(Exception):
    """The compiler did not find room for a program.

    Attributes:
      needs: Bytes on a device that would have been enough; None: the compiler did not tell.
    """

    def __init__(self, needs: float | None):
        """Makes the exception."""
        self.needs = needs
        super().__init__(f'needs {size_text(needs)} a device')


def make_plan(
    config: ConfigDict,
    name: str,
    target: Target,
    *,
    largest_batch: bool = False,
    make_fit: bool = True,
    share: float = SHARE_OF_PEAK,
) -> dict[str, Any]:
    """Compiles a config for a target, and finds out how it fits.

    Where it does not fit, ways to make it fit are tried in this order, each on top of those before:
    more micro-batches, `remat_blocks`, `remat_cross_attends`, bfloat16.

    Args:
      config: The run's configuration.
      name: What it is called, with the keys that the command line set.
      target: The devices.
      largest_batch: Whether to look for the largest batch that fits, instead of taking the
        config's.
      make_fit: Whether to try ways to make it fit.
      share: Share of the peak at which the time of an update is estimated.

    Returns:
      What `plan_table` shows; of what JSON holds.

    Raises:
      Refused: The config cannot be run on so many devices, or not as `parallel='pmap'`.
    """
    if config.parallel != 'jit':
        raise Refused(
            f"config.parallel is {config.parallel!r}; --mode=compile compiles what 'jit' runs"
        )
    devices = parallel.Jit(target.devices())
    if largest_batch:
        config, needs = _largest(config, target, devices)
    else:
        check_sizes(config, target.num_devices)
        needs = _measure(config, target, devices)
    remedy: dict[str, Any] | None = None
    as_written = needs
    if make_fit and not needs['fits']:
        for changes, changed in _remedies(config, target.num_devices, needs):
            _say(f'{_of(needs)}: tried with {_flags(changes)}')
            needs = _measure(changed, target, devices)
            if needs['fits']:
                remedy, config = changes, changed
                break
    packages = ('jax', 'jaxlib', target.compiler)
    plan = {
        'task': config.task,
        'config': name,
        'target': target.name,
        'num_devices': target.num_devices,
        'batch_size': config.train.batch_size,
        'accumulate_steps': config.train.accumulate_steps,
        'as_written': {key: as_written[key] for key in ('fits', 'sum', 'has')},
        'fits': needs['fits'],
        'remedy': None if remedy is None else _flags(remedy),
        **{key: value for key, value in needs.items() if key != 'fits'},
        'versions': {package: importlib.metadata.version(package) for package in packages},
        'git_commit': git_commit(),
        'date': now(),
    }
    if 'flops' in plan:
        bf16 = config.model.get('dtype', 'float32') in ('bfloat16', 'float16')
        peak = target.device.flops if bf16 else target.device.float32_flops
        seconds = plan['flops'] / (share * peak * target.num_devices)
        plan |= {
            'share_of_peak': share,
            'peak_flops': peak,
            'seconds_per_step': seconds,
            'examples_per_second': config.train.batch_size / seconds,
        }
    return plan


def _measure(config: ConfigDict, target: Target, devices: parallel.Jit) -> dict[str, Any]:
    """Compiles both programs of a config; tells what a device has to hold, and whether it can."""
    task = make_task(config)
    train_batch, eval_batch = batch_shapes(config)
    total_steps, steps_per_epoch = count_steps(config, 2**20)  # of which no size depends
    optimizer, _ = make_optimizer(total_steps, steps_per_epoch, **config.optimizer)
    kind = target.platform, devices.replicated.mesh.devices.flat[0].device_kind
    with compiling_for(*kind):
        state = jax.eval_shape(functools.partial(loop.initial_state, config, task, optimizer))
    state = _laid_out(state, devices.replicated)
    parts = config.train.accumulate_steps
    train_batch = {
        key: jax.ShapeDtypeStruct((parts, x.shape[0] // parts, *x.shape[1:]), x.dtype)
        for key, x in train_batch.items()
    }
    params = _bytes(state.params)
    needs: dict[str, Any] = {
        'fits': False,
        'has': target.device.memory,
        'preallocated': target.device.preallocated,
        'parameters': params,
        'optimizer': _bytes(state) - params,
    }
    try:
        update = _compile(
            loop.compile_update(config, task, optimizer, devices),
            *kind,
            (state, _laid_out(train_batch, devices.micro_batches)),
            num_states=1,
        )
        predict = _compile(
            compile_predict(task, devices),
            *kind,
            (state.params, state.state, _laid_out(eval_batch, devices.examples)),
            num_states=2,
        )
    except TooLarge as error:
        return {**needs, 'sum': error.needs}
    code = update.code + predict.code
    kept = needs['parameters'] + needs['optimizer'] + code
    training = kept + NUM_BATCHES * update.batch + update.temporaries
    evaluation = kept + NUM_BATCHES * predict.batch + predict.temporaries
    needs |= {
        'batches': NUM_BATCHES * update.batch,
        'temporaries': update.temporaries,
        'program': code,
        'sum': max(training, evaluation),
        'training': training,
        'evaluation': evaluation,
        'compile_seconds': {'update': update.seconds, 'evaluation': predict.seconds},
        'collectives': update.collectives,
        'flops': update.flops,
        'evaluation_flops': predict.flops,
    }
    return {**needs, 'fits': needs['sum'] <= needs['has']}


def batch_shapes(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes the shapes of a run's global batches, by the task's own pipelines on a blank example.

    Args:
      config: The run's configuration.

    Returns:
      Those of training and those of evaluation: `{name: ShapeDtypeStruct}`.
    """
    few = copy.deepcopy(config)
    with few.unlocked():
        few.train.batch_size, few.evaluation.batch_size, few.data.num_workers = 2, 2, 0
    task = make_task(few)
    task.without_data()
    sizes = config.train.batch_size, config.evaluation.batch_size
    shapes = []
    for batches, size in zip((task.train_batches(0), task.eval_batches()), sizes, strict=True):
        batch = next(batches)
        batches.close()
        shapes.append(
            {key: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for key, x in batch.items()}
        )
    return shapes[0], shapes[1]


def _compile(
    function: Any, platform: str, device_kind: str, arguments: tuple[Any, ...], num_states: int
) -> Program:
    """Compiles a step; `num_states` of the arguments are on the devices anyway, the rest a batch.

    Raises TooLarge.
    """
    start = time.monotonic()
    with compiling_for(platform, device_kind):
        traced = function.trace(*arguments)
        lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise TooLarge(_needs(str(error))) from None
    sizes = compiled.memory_analysis()
    state = sum(_bytes(x) for x in arguments[:num_states])
    return Program(
        batch=max(sizes.argument_size_in_bytes - state, 0),
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        seconds=time.monotonic() - start,
        flops=count_jaxpr(traced.jaxpr.jaxpr),
        collectives=collectives(compiled.as_text()),
    )


def _needs(message: str) -> float | None:
    """Reads from an error of XLA how many bytes a program needs; None: it does not tell."""
    found = re.search(r'(?:Used |HLO temporaries \()([\d.]+)([KMGT]?)', message)
    return float(found[1]) * _UNITS[found[2]] if found else None


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Counts what devices send each other in a compiled program.

    Args:
      hlo: The text of the program, for one device.

    Returns:
      `{kind: {'count': ..., 'bytes': ...}}`, bytes of the results; those that a loop repeats are
      called `{kind} in loops`, and counted once.
    """
    calls: dict[str, set[str]] = collections.defaultdict(set)  # by the computation that calls
    repeated: set[str] = set()
    sent: dict[tuple[str, str], collections.Counter] = {}  # by computation and kind
    operation = re.compile(rf'\s+(?:ROOT )?\S+ = (.*?) ({"|".join(_COLLECTIVES)})(?:-start)?\(')
    computation = ''
    for line in hlo.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix('ENTRY ').split(' ')[0]
            continue
        repeated |= set(re.findall(r'body=(%[\w.-]+)', line))
        calls[computation] |= set(
            re.findall(r'[=,{ ](%[\w.-]+)(?=[,} ]|$)', line.partition('), ')[2])
        )
        if match := operation.match(line):
            arrays = re.findall(r'(\w+)\[([\d,]*)\]', match[1])
            size = sum(
                _ITEM_BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(',') if n)
                for dtype, shape in arrays
            )
            counter = sent.setdefault((computation, match[2]), collections.Counter())
            counter.update(count=1, bytes=size)
    reached = list(repeated)
    for name in reached:  # what a body calls repeats with it
        reached += calls[name].difference(reached)
    found: dict[str, collections.Counter] = {}
    for (computation, kind), counter in sent.items():
        name = f'{kind} in loops' if computation in reached else kind
        found.setdefault(name, collections.Counter()).update(counter)
    return {kind: dict(counter) for kind, counter in sorted(found.items())}


def _remedies(
    config: ConfigDict, num_devices: int, needs: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], ConfigDict]]:
    """Yields what may make a config fit, `{key: value}`, and the config with it."""
    changes: dict[str, Any] = {}

    def changed() -> tuple[dict[str, Any], ConfigDict]:
        other = copy.deepcopy(config)
        with other.unlocked():
            other.update_from_flattened_dict(changes)
        return dict(changes), other

    parts = config.train.accumulate_steps
    most = config.train.batch_size // num_devices
    more = [n for n in range(parts + 1, most + 1) if most % n == 0]
    # No more parts than are needed, but where parts hardly matter, few tries.
    least = 0.0 if needs['sum'] is None else parts * min(needs['sum'] / needs['has'], 4)
    for n in [n for n in more if n >= least] or more[-1:]:
        changes['train.accumulate_steps'] = n
        yield changed()
    encoder = config.model.get('encoder', {})
    for key in ('remat_blocks', 'remat_cross_attends'):
        if encoder.get(key) is False:
            changes[f'model.encoder.{key}'] = True
            yield changed()
    if config.model.get('dtype') == 'float32':
        changes['model.dtype'] = 'bfloat16'
        yield changed()


def _largest(
    config: ConfigDict, target: Target, devices: parallel.Jit
) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the config with the largest batch that fits, to a sixteenth, and what it needs."""
    per_example = target.num_devices * config.train.accumulate_steps
    fitting: dict[int, tuple[ConfigDict, dict[str, Any]]] = {}
    sums: dict[int, float] = {}  # by examples that a device works on at a time
    size = max(config.train.batch_size // per_example, 1)
    high: int | None = None  # the smallest that is known not to fit
    while True:
        other = copy.deepcopy(config)
        with other.unlocked():
            other.train.batch_size = size * per_example
        check_sizes(other, target.num_devices)
        needs = _measure(other, target, devices)
        sums[size] = needs['sum'] or 2 * needs['has']
        if needs['fits']:
            fitting[size] = other, needs
        else:
            high = size
        word = 'fit' if needs['fits'] else 'do not fit'
        _say(f'{size} examples a device {word}: {_of(needs)}')
        low = max(fitting, default=0)
        step = max(low // 16, 1)
        most = 4 * size if high is None else high - 1
        most = min(most, MAX_BATCH // per_example)
        if most < low + step:
            break
        # Along the line through the smallest and the largest that were tried.
        small, large = (min(sums) if len(sums) > 1 else 0), max(sums)
        slope = (sums[large] - sums.get(small, 0)) / (large - small)
        guess = small + (needs['has'] - sums.get(small, 0)) / slope if slope > 0 else 0
        size = min(max(int(min(guess, most)), low + step), most)
    if not low:
        raise Refused(
            f'--target_batch=max: not even one example a device fits {target.name}: {_of(needs)}'
        )
    return fitting[low]


def plan_table(plan: Mapping[str, Any]) -> str:
    """Writes a plan for people.

    Args:
      plan: What `make_plan` returned.

    Returns:
      The lines of a table.
    """
    per_device = plan['batch_size'] / plan['num_devices']
    parts = plan['accumulate_steps']
    batch = f'{plan["batch_size"]:,} examples, {per_device:g} a device'
    rows = [
        ('target', f'{plan["target"]}, {plan["num_devices"]} devices; compiled, not run'),
        ('batch', batch + (f' in {parts} parts' if parts > 1 else '')),
    ]
    if not plan['as_written']['fits']:
        as_written = plan['as_written']
        rows.append(
            (
                'as written',
                f'does not fit: {_of(as_written)}',
            )
        )
        remedy = plan['remedy'] or 'neither micro-batches, rematerialisation nor bfloat16'
        rows.append(('made to fit by', remedy))
    if 'temporaries' in plan:
        for key in ('parameters', 'optimizer', 'batches', 'temporaries', 'program'):
            rows.append((key, f'{size_text(plan[key])} a device'))
    verdict = 'fits' if plan['fits'] else 'does not fit'
    rows.append(('sum', f'{_of(plan)}: {verdict}'))
    if 'temporaries' in plan:
        if plan['sum'] > plan['preallocated']:
            rows.append(('', f'with XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}'))
        rows.append(('evaluation', f'{size_text(plan["evaluation"])} in all'))
        for kind, found in plan['collectives'].items():
            rows.append((kind, f'{found["count"]}, {size_text(found["bytes"])}'))
        seconds = plan['compile_seconds']
        rows += [
            ('compiled in', f'{seconds["update"]:.0f} s, evaluation {seconds["evaluation"]:.0f} s'),
            ('operations', f'{short(plan["flops"])} an update'),
            (
                'an update',
                f'{plan["seconds_per_step"]:.3g} s, {plan["examples_per_second"]:,.0f} examples/s, '
                f'at {plan["share_of_peak"]:.0%} of the peak of '
                f'{plan["peak_flops"] / 1e12:g} TFLOP/s (an estimate)',
            ),
        ]
    return '\n'.join(f'{name:<22}{text}'.rstrip() for name, text in rows)


def _laid_out(tree: Any, sharding: Any) -> Any:
    """Gives shapes a place on devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _flags(changes: Mapping[str, Any]) -> str:
    return ' '.join(f'--config.{key}={value}' for key, value in changes.items())


def _of(needs: Mapping[str, Any]) -> str:
    return f'{size_text(needs["sum"])} of {size_text(needs["has"])}'


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
