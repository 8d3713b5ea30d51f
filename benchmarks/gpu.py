"""On a GPU: attention to pixels; training and flow in bfloat16, as a share of the matmul peak.

Operations are the forward FLOPs of `--mode=describe`, three times for a training step: what is
folded away or computed again does not count.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks import cases, peers
from benchmarks.harness import Build, Program, Report, compare, compiled

BATCHES = (64, 128, 256, 512, 1024)  # until memory is full
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'OutOfMemory', 'out of memory')


def matmul(size: int) -> dict[str, Program]:
    """Builds a product of square bfloat16 matrices: the peak that shares are taken of."""
    import jax.numpy as jnp

    a = jnp.ones((size, size), jnp.bfloat16)
    return {'forward': compiled(jnp.matmul, a, a, flops=2 * size**3)}


def forward_flops(variant: str) -> int:
    """Counts the operations of a model of configs/imagenet.py on one image."""
    from configs import imagenet
    from experiments.imagenet.task import ImageNet

    return ImageNet(imagenet.get_config(variant)).describe()['forward_flops']


def gpu(report: Report, batches=BATCHES, size: int = 8192) -> None:
    """Measures attention to pixels, training `perceiver`, `io_fourier`, `io_conv`, then flow.

    One implementation runs at a time.

    Args:
      report: What the rows are added to.
      batches: Batch sizes in ascending order; the first that does not fit into memory ends them.
      size: Side of the matrices whose product is the peak.
    """
    product = {'ours': (matmul, dict(size=size))}
    compare(report.name, f'matmul {size}', product, repeats=5, report=report)
    peak = report.rows[-1]['flops_per_second']
    attention(report)
    for variant in ('perceiver', 'io_fourier', 'io_conv'):
        # In a process of its own: one that has traced holds a part of the GPU's memory.
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
            flops = 3 * pool.submit(forward_flops, variant).result()
        how = dict(variant=variant, size=224)
        chosen: dict[str, tuple[Build, dict]] = {
            'ours': (cases.training_step, {**how, 'implementation': 'auto', **narrow()}),
            'ours, remat': (
                cases.training_step,
                {**how, 'implementation': 'auto', **narrow(encoder=dict(remat_blocks=True))},
            ),
            'ours, pallas': (cases.training_step, {**how, 'implementation': 'pallas', **narrow()}),
            'plain': (cases.training_step, {**how, 'implementation': 'plain', **narrow()}),
        }
        if variant != 'io_conv':  # the reference statement has no convolution
            chosen['reference'] = (
                cases.training_step,
                {**how, 'implementation': 'reference', **narrow()},
            )
        if variant != 'perceiver':
            chosen |= peers.implementations(peers.training_step, **how, dtype='bfloat16')
        for name, (build, arguments) in chosen.items():
            for batch in batches:
                more = dict(batch=batch, flops=flops * batch)
                case = f'{variant}, batch {batch}'
                if not _fits(report, case, name, build, {**arguments, **more}):
                    break
                row = report.rows[-1]
                row['images_per_second'] = batch / row['seconds']
                row['share_of_peak'] = row['flops_per_second'] / peak
                rate, share = row['images_per_second'], row['share_of_peak']
                print(f'    {rate:.4g} images/s, {share:.1%} of the peak')
    flow = {
        name: (cases.flow_forward, dict(implementation=how, dtype='bfloat16'))
        for name, how in (('ours', 'auto'), ('plain', 'plain'), ('reference', 'reference'))
    }
    flow |= peers.implementations(peers.flow_forward, dtype='bfloat16')
    for name, (build, arguments) in flow.items():
        _fits(report, 'flow 368x496', name, build, arguments)


def attention(report: Report, batches=(8, 64), **sizes: int) -> None:
    """Measures the attention of 512 queries to the pixels of images of 224x224.

    Args:
      report: What the rows are added to.
      batches: Numbers of images.
      **sizes: Other sizes, see `cases.attention_to_pixels`.
    """
    chosen = {
        'ours': dict(implementation='auto', grid=True),
        'ours, array': dict(implementation='auto', grid=False),
        'ours, pallas': dict(implementation='pallas', grid=True),
    }
    for batch in batches:
        for dtype in ('bfloat16', 'float32'):
            for name, how in chosen.items():
                arguments = {**how, 'batch': batch, 'dtype': dtype, **sizes}
                case = f'attention, {batch}, {dtype}'
                _fits(report, case, name, cases.attention_to_pixels, arguments)


def narrow(**changes) -> dict:
    """Returns a case's arguments for bfloat16, with other changes of the model."""
    return {'changes': {'dtype': 'bfloat16', **changes}}


def _fits(report: Report, case: str, name: str, build: Build, arguments: dict) -> bool:
    """Measures one implementation; returns False if the memory does not suffice."""
    try:
        compare(report.name, case, {name: (build, arguments)}, repeats=5, report=report)
    except RuntimeError as error:
        if not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        print(f'{case}, {name}: out of memory')
        return False
    return True
