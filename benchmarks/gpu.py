"""On a GPU: training as a share of the matmul peak, attention beside others, in bfloat16.

Operations are the forward FLOPs of `--mode=describe`, three times for a training step or a gradient
of queries and keys, twice for one of queries: what is folded away or computed again does not count.
"""

import functools
import itertools
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import cases, peers
from benchmarks.deadline import Failed, Profiled, measured
from benchmarks.harness import Build, Program, Report, compiled

OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'OutOfMemory', 'out of memory')
LONGEST = 1800  # seconds of a case where no time is given: the reference compiles for minutes
RESERVE = 3  # seconds to end a process and to write what it measured
KERNELS_SHOWN = 10
MEMORY_SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'

# PyTorch and JAX share a card badly: JAX takes most of its memory at first use.
BESIDE_TORCH = {'JAX_PLATFORMS': 'cpu'}
IMAGE_VARIANTS = ('io_fourier', 'perceiver', 'io_conv')
# Implementation of attention and fields of the encoder, by name.
OURS: dict[str, tuple[str, dict]] = {
    'ours': ('auto', {}),
    'ours, pallas': ('pallas', {}),
    'ours, loop': ('auto', dict(scan=True)),  # blocks that repeat are compiled once
    'ours, remat': ('auto', dict(remat_blocks=True)),
    'plain': ('plain', {}),
}
TRANSFORMERS = ('transformers', 'transformers, compiled')


class Sizes(NamedTuple):
    """What the cases are of.

    Attributes:
      matmul: Side of the matrices whose product is the peak.
      side: Height and width of images.
      frame: Height and width of frames.
      queries: Queries that attend to the elements of an example, and its latents.
      points: Points of a cloud.
      clip: Elements of a clip's sound and video.
      few: Examples whose attention is measured alone.
      batches: Batch sizes of training steps in ascending order, until memory is full.
      encoder: Fields that replace those of all encoders.
      peers: The same in the words of transformers.
    """

    matmul: int
    side: int
    frame: tuple[int, int]
    queries: int
    points: int
    clip: int
    few: int
    batches: tuple[int, ...]
    encoder: dict[str, int]
    peers: dict[str, int]


FULL = Sizes(8192, 224, (368, 496), 512, 2048, 13_024, 8, (64, 128, 256, 512, 1024), {}, {})
# To see on a CPU that all cases run.
TINY = Sizes(
    matmul=64,
    side=12,
    frame=(8, 16),
    queries=8,
    points=9,
    clip=17,
    few=2,
    batches=(2, 4),
    encoder=dict(num_latents=8, latent_channels=16, num_self_attends_per_block=1),
    peers=dict(num_latents=8, d_latents=16, num_self_attends_per_block=1),
)


class Case(NamedTuple):
    """What one process measures.

    Attributes:
      name: What is computed.
      implementations: Builder and its arguments, by the implementation's name.
      seconds: What it took on an H100 or will take there, generously: the process, compilation.
      examples: Number and kind of what a run takes in, such as (64, 'images'); None: no rate.
      environment: Variables that the process has besides those of this one.
      profiled: Whether to tell the costliest kernels.
    """

    name: str
    implementations: dict[str, tuple[Build, dict]]
    seconds: int
    examples: tuple[int, str] | None = None
    environment: dict[str, str] = {}
    profiled: bool = False

    @property
    def titles(self) -> list[str]:
        """Names of the case's implementations for what is not measured."""
        return [f'{self.name}: {implementation}' for implementation in self.implementations]

    @property
    def ladder(self) -> str | None:
        """Names what is measured with growing batches; None: this is not."""
        model, batch, _ = self.name.rpartition(', batch ')
        return ', '.join((model, *self.implementations)) if batch else None


def matmul(size: int) -> dict[str, Program]:
    """Builds a product of square bfloat16 matrices: the peak that shares are taken of."""
    import jax
    import jax.numpy as jnp

    # Of random numbers: those of ones take less power, and the clock stays higher.
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
    return {'forward': compiled(jnp.matmul, a, b, flops=2 * size**3)}


def with_flops(build: Build, model: tuple, times: int, batch: int, **arguments):
    """Builds programs of a model whose operations are counted first, from shapes alone.

    Args:
      build: The builder.
      model: Arguments of `cases.forward_flops`.
      times: How often the operations of a forward pass count.
      batch: Number of examples.
      **arguments: The builder's other arguments.
    """
    flops = times * batch * cases.forward_flops(*model)
    return build(batch=batch, flops=flops, **arguments)


def image_step(variant: str, name: str, batch: int, sizes: Sizes, profiled: bool = False) -> Case:
    """Makes the case of a training step of a variant of configs/imagenet.py.

    Args:
      variant: The variant.
      name: A key of `OURS`, 'reference', or an implementation of benchmarks/peers.py.
      batch: Number of images.
      sizes: Of images and models.
      profiled: Whether to tell the costliest kernels.
    """
    seconds = {'reference': 300, 'transformers': 40, 'transformers, compiled': 120}.get(name, 65)
    seconds += 40 * profiled
    model = 'imagenet', variant, (sizes.side, sizes.side, 3)
    how = dict(model=model, times=3, batch=batch, variant=variant, size=sizes.side)
    if name.startswith('transformers'):
        how |= dict(build=peers.training_step, implementation=name, dtype='bfloat16')
        how |= dict(changes=sizes.peers)
    else:
        implementation, encoder = {**OURS, 'reference': ('reference', {})}[name]
        changes = dict(dtype='bfloat16', encoder={**encoder, **sizes.encoder})
        how |= dict(build=cases.training_step, implementation=implementation, changes=changes)
    return Case(
        f'{variant}, batch {batch}',
        {name: (with_flops, how)},
        seconds,
        examples=(batch, 'images'),
        environment=BESIDE_TORCH if name.startswith('transformers') else {},
        profiled=profiled,
    )


def task_step(task: str, variant: str, name: str, batch: int, sizes: Sizes) -> Case:
    """Makes the case of a training step of ModelNet40 or of optical flow; see `image_step`."""
    implementation, encoder = OURS[name]
    changes = dict(dtype='bfloat16', encoder={**encoder, **sizes.encoder})
    shape = (2, *sizes.frame, 3) if task == 'flow' else (sizes.points, 3)
    how = dict(build=cases.task_training_step, model=(task, variant, shape), times=3, batch=batch)
    how |= dict(task=task, variant=variant, shape=shape)
    how |= dict(implementation=implementation, changes=changes)
    kind = {'modelnet40': 'shapes', 'flow': 'pairs'}[task]
    title = f'{task}, {variant}, batch {batch}'
    return Case(title, {name: (with_flops, how)}, 65, examples=(batch, kind))


def flow_forward(name: str, sizes: Sizes) -> Case:
    """Makes the case of the released flow model on one pair of frames; see `image_step`."""
    model = 'flow', 'main', (2, *sizes.frame, 3)
    how = dict(model=model, times=1, batch=1, dtype='bfloat16', size=sizes.frame)
    if name.startswith('transformers'):
        how |= dict(build=peers.flow_forward, implementation=name, changes=sizes.peers)
    else:
        implementation = 'reference' if name == 'reference' else OURS[name][0]
        how |= dict(build=cases.flow_forward, implementation=implementation, encoder=sizes.encoder)
    seconds = 90 if 'compiled' in name else 45
    environment = BESIDE_TORCH if name.startswith('transformers') else {}
    title = f'flow, {sizes.frame[0]}x{sizes.frame[1]}'
    implementations = {name: (with_flops, how)}
    return Case(title, implementations, seconds, examples=(1, 'pairs'), environment=environment)


def attention(
    batch: int,
    queries: int,
    keys: int,
    channels: int,
    *,
    heads: int = 1,
    chunk_sizes: tuple[int, ...] = (),
    seconds: int = 25,
) -> Case:
    """Makes the case of attention to arrays: 'auto', 'plain' and chunks of some sizes.

    Args:
      batch: Number of examples.
      queries: Queries of each.
      keys: Keys of each.
      channels: Channels of a head.
      heads: Number of heads.
      chunk_sizes: Keys of a chunk.
      seconds: See `Case`.
    """
    how = dict(batch=batch, num_queries=queries, num_keys=keys, channels=channels, num_heads=heads)
    chosen: dict[str, dict] = {'ours': dict(implementation='auto')}
    chosen['plain'] = dict(implementation='plain')
    for size in chunk_sizes:
        chunked = dict(implementation='chunked', chunk_size=size)
        chosen['one chunk' if size >= keys else f'chunks of {size:,}'] = chunked
    return Case(
        attention_title(batch, queries, keys, channels, heads),
        {name: (cases.attention, {**how, **more}) for name, more in chosen.items()},
        seconds,
    )


def attention_title(batch: int, queries: int, keys: int, channels: int, heads: int = 1) -> str:
    """Names attention by its sizes."""
    width = f' x {channels}' if heads == 1 else f', {heads} heads of {channels}'
    return f'attention, {batch} x {queries:,} x {keys:,}{width}'


def attention_of_torch(batch: int, queries: int, keys: int, channels: int, heads: int = 1) -> Case:
    """Makes the case of PyTorch's attention to the same arrays."""
    how = dict(batch=batch, num_queries=queries, num_keys=keys, channels=channels, num_heads=heads)
    implementations = {'PyTorch': (peers.attention, {**how, 'implementation': 'PyTorch'})}
    title = attention_title(batch, queries, keys, channels, heads)
    return Case(title, implementations, 20, environment=BESIDE_TORCH)


def attention_to_grid(batch: int, sizes: Sizes, dtype: str = 'bfloat16') -> Case:
    """Makes the case of attention to images, as grids and as arrays."""
    chosen = {
        'ours': dict(implementation='auto', grid=True),
        'ours, pallas': dict(implementation='pallas', grid=True),
        'ours, array': dict(implementation='auto', grid=False),
    }
    how = dict(batch=batch, dtype=dtype, num_queries=sizes.queries, side=sizes.side)
    return Case(
        f'pixels, {batch} x {sizes.queries} x {sizes.side}x{sizes.side}, {dtype}',
        {name: (cases.attention_to_pixels, {**how, **more}) for name, more in chosen.items()},
        40,
    )


def errors(sizes: Sizes) -> Iterator[Case]:
    """Makes the cases whose rows tell relative errors of outputs and gradients in bfloat16."""
    keys = sizes.side**2 // 12  # also of float32, whose matrix of weights exists
    shapes = {
        f'errors, {keys:,} x 261': (dict(num_keys=keys, channels=261), keys // 8),
        'errors, 8 heads of 128': (
            dict(num_keys=sizes.queries, channels=128, num_heads=8),
            sizes.queries // 4,
        ),
    }
    for title, (shape, chunk_size) in shapes.items():
        how = dict(batch=2, num_queries=sizes.queries, with_errors=True, **shape)
        chosen = {'ours': 'auto', 'chunked': 'chunked', 'plain': 'plain'}
        implementations = {
            name: (cases.attention, {**how, 'implementation': implementation})
            for name, implementation in chosen.items()
        }
        implementations['chunked'][1].update(chunk_size=chunk_size)
        yield Case(title, implementations, 25)
    side = sizes.side // 3
    how = dict(batch=2, dtype='bfloat16', num_queries=sizes.queries, side=side, with_errors=True)
    chosen = {
        'ours': dict(implementation='auto', grid=True),
        'ours, pallas': dict(implementation='pallas', grid=True),
        'chunked, array': dict(implementation='chunked', grid=False),
        'plain, array': dict(implementation='plain', grid=False),
    }
    yield Case(
        f'errors, pixels, {side}x{side}',
        {name: (cases.attention_to_pixels, {**how, **more}) for name, more in chosen.items()},
        40,
    )


def plan(sizes: Sizes = FULL) -> list[Case]:
    """Lists all cases, the most telling first.

    Args:
      sizes: Of what the cases are.
    """
    few, many, queries, pixels = sizes.few, 4 * sizes.few, sizes.queries, sizes.side**2
    first, second, *_ = sizes.batches
    image = functools.partial(image_step, sizes=sizes)
    task = functools.partial(task_step, sizes=sizes)
    with_torch = peers.installed('torch')
    with_transformers = with_torch and peers.installed('transformers')
    listed = [
        Case(f'matmul {sizes.matmul:,}', {'ours': (matmul, dict(size=sizes.matmul))}, 15),
        *errors(sizes),
        image('io_fourier', 'ours', first),
        image('perceiver', 'ours, pallas', first, profiled=True),
        attention_to_grid(few, sizes),
    ]
    if with_transformers:  # an image takes twice our memory, and more
        listed += [image('io_fourier', name, first // 2) for name in TRANSFORMERS]
    listed += [
        task('modelnet40', 'perceiver', 'ours', first),
        task('flow', 'main', 'ours', 1),
        attention(few, queries, pixels, 261, chunk_sizes=(pixels, 4096), seconds=40),
        image('io_fourier', 'ours, loop', first),
        image('io_fourier', 'ours, pallas', first),
        image('perceiver', 'ours', first, profiled=True),
        attention(few, queries, pixels, 264),
        attention(many, queries, queries, 128, heads=8),
    ]
    if with_torch:
        listed += [attention_of_torch(few, queries, pixels, n) for n in (256, 264, 261)]
        listed.append(attention_of_torch(many, queries, queries, 128, 8))
    listed += [
        image('io_fourier', 'ours', second),
        image('perceiver', 'ours', second),
        image('io_conv', 'ours', first),
        attention(8 * few, queries, sizes.points, 387),  # points
        attention(2 * few, queries, sizes.clip, 487),  # sound and video
        attention(few, queries, pixels, 131),  # learned positions of the ICML Perceiver
        attention(few, queries, pixels, 512),  # and of IO
        flow_forward('ours', sizes),
    ]
    if with_transformers:
        listed += [flow_forward(name, sizes) for name in TRANSFORMERS]
    listed += [
        image(variant, name, first)
        for name in ('plain', 'ours, remat', 'ours, pallas')
        for variant in IMAGE_VARIANTS
    ]
    listed += [attention_to_grid(8 * few, sizes, dtype) for dtype in ('bfloat16', 'float32')]
    for batch in sizes.batches:
        for name in OURS:
            listed += [image(variant, name, batch) for variant in IMAGE_VARIANTS]
            listed.append(task('modelnet40', 'perceiver', name, batch))
    for batch, name in itertools.product((1, 4, 16), OURS):
        listed.append(task('flow', 'main', name, batch))
    if with_transformers:  # which has no ICML Perceiver
        for variant, name in itertools.product(('io_fourier', 'io_conv'), TRANSFORMERS):
            listed += [image(variant, name, batch) for batch in (first // 2, *sizes.batches)]
    # The written-out reference; it states no convolution.
    listed += [flow_forward(name, sizes) for name in ('ours, pallas', 'plain', 'reference')]
    for variant, batch in itertools.product(('io_fourier', 'perceiver'), sizes.batches):
        listed.append(image(variant, 'reference', batch))
    unique: dict[tuple, Case] = {}
    for case in listed:
        unique.setdefault((case.name, *case.implementations), case)
    return [*unique.values()]


def gpu(report: Report, seconds: float | None = None, listed: list[Case] | None = None) -> None:
    """Measures the cases in their order, until the time is over; writes after each.

    Args:
      report: What the rows are added to.
      seconds: When everything has ended; None measures all cases.
      listed: The cases; None: those of `plan`. The rate of one called 'matmul ...' is the peak.
    """
    start = time.monotonic()
    listed = plan() if listed is None else listed
    report.not_measured = {title: 'not reached' for case in listed for title in case.titles}
    full: set[str] = set()  # ladders whose next step memory does not suffice for
    for case in listed:
        left = LONGEST if seconds is None else start + seconds - RESERVE - time.monotonic()
        if case.ladder in full:
            reason = 'memory did not suffice for a smaller batch'
        elif seconds is not None and case.seconds > left:
            reason = 'no time left'
        else:
            limit = left if seconds is None else min(left, 3 * case.seconds)
            begin = time.monotonic()
            failed = _measure(report, case, limit)
            again = {name: case.implementations[name] for name in failed if _passes(failed[name])}
            limit -= time.monotonic() - begin
            if again and limit > 0:
                failed = _measure(report, case._replace(implementations=again), limit)
            if case.ladder and any(text in x for text in OUT_OF_MEMORY for x in failed.values()):
                full.add(case.ladder)
            print(f'    took {time.monotonic() - begin:.0f} s', flush=True)
            continue
        report.not_measured.update(dict.fromkeys(case.titles, reason))
        report.write()
    by_reason: dict[str, list[str]] = {}
    for title, reason in report.not_measured.items():
        by_reason.setdefault(reason, []).append(title)
    for reason, titles in by_reason.items():
        print(f'not measured: {reason}: {"; ".join(titles)}')


def _passes(error: str) -> bool:
    """Whether an error is gone at the next try: XLA's autotuner, now and then."""
    return 'No candidates could be compiled' in error


def _measure(report: Report, case: Case, seconds: float) -> dict[str, str]:
    """Measures a case; returns the errors of implementations that failed."""
    errors = {}
    environment = dict(case.environment)
    if MEMORY_SHARE not in os.environ:
        environment[MEMORY_SHARE] = '.92'  # one process at a time is on the card
    peak = next((x['flops_per_second'] for x in report.rows if x['case'].startswith('matmul')), 0)
    for answer in measured(
        case.implementations, seconds=seconds, environment=environment, profiled=case.profiled
    ):
        title = f'{case.name}: {answer.implementation}'
        if isinstance(answer, Failed):
            errors[answer.implementation] = answer.error
            error = ' '.join(answer.error.split())[:300]
            report.not_measured[title] = error
            print(f'{title} failed: {error}', flush=True)
        elif isinstance(answer, Profiled):
            report.rows[-1]['kernels'] = answer.kernels
            for kernel in answer.kernels[:KERNELS_SHOWN]:
                print(
                    '    {ms:8.2f} ms {share:6.1%} {calls:8,.1f} calls  {name:.70}'.format(**kernel)
                )
        else:
            rates = {}
            if case.examples:
                number, kind = case.examples
                rates[f'{kind}_per_second'] = number / answer.seconds
            if answer.flops and peak:
                rates['share_of_peak'] = answer.flops / answer.seconds / peak
            report.add(
                case.name,
                answer.which,
                answer.implementation,
                answer.seconds,
                answer.peak_bytes,
                answer.flops,
                **rates,
                **answer.more,
            )
            report.not_measured.pop(title, None)
        report.write()
    return errors
