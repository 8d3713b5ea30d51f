"""Measures speed and memory against plain code and against Hugging Face's port.

python -m benchmarks                      all benchmarks for the CPU
python -m benchmarks cross_attend         one of them
python -m benchmarks gpu                  the benchmark for a GPU; hours, or --seconds
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import cases, gpu, harness, peers, pipeline


def cross_attend(report: harness.Report) -> None:
    """Measures a cross-attend to an image; its time should grow linearly with the pixels."""
    for side in (32, 224, 512, 1024):
        chosen = {
            'ours': dict(implementation='auto', grid=True),
            'ours, array': dict(implementation='auto', grid=False),
            'plain': dict(implementation='plain', grid=False),
            'reference': dict(implementation='reference', grid=False),
        }
        if side > 224:  # the whole matrix, and that of its gradient, would be 4 GB
            del chosen['plain'], chosen['reference']
        harness.compare(
            report.name,
            f'512 x {side**2:,} x 261',
            {
                name: (cases.cross_attend, {**how, 'side': side, 'passes': PASSES})
                for name, how in chosen.items()
            },
            repeats=3 if side <= 224 else 0,
            report=report,
        )


PASSES = ('forward', 'gradient', 'gradient, inputs too')


def image_forward(report: harness.Report) -> None:
    """Measures full-size ImageNet models on one image of 224x224."""
    for variant in ('io_fourier', 'perceiver'):
        chosen = {
            name: (cases.image_forward, dict(implementation=how, variant=variant))
            for name, how in {**JAX, 'ours, unrolled': 'unrolled'}.items()
        }
        if variant == 'io_fourier':
            chosen |= peers.implementations(peers.image_forward, variant=variant)
        harness.compare(
            report.name, variant, chosen, repeats=3, report=report, with_compilation=True
        )


def compilation(report: harness.Report) -> None:
    """Measures compiling a training step of the ICML Perceiver: repeats in a loop, or unrolled."""
    how = dict(variant='perceiver', size=224, batch=1)
    chosen = {
        name: (cases.training_step, {**how, 'implementation': i})
        for name, i in (('ours', 'auto'), ('ours, unrolled', 'unrolled'))
    }
    case = 'perceiver, training step'
    harness.compare(
        report.name, case, chosen, repeats=0, report=report, with_compilation=True, runs=False
    )


def training_step(report: harness.Report) -> None:
    """Measures training: a small model on batches of 16 images, the ICML Perceiver on one.

    The small model has 128 latents of 256 channels and six self-attends.
    """
    for size in (32, 64):
        how = dict(variant='io_fourier', size=size, batch=16)
        chosen = {
            name: (cases.training_step, {**how, 'implementation': i, 'changes': cases.SMALL})
            for name, i in JAX.items()
        }
        chosen |= peers.implementations(peers.training_step, **how, changes=peers.SMALL)
        harness.compare(report.name, f'{size}x{size}', chosen, repeats=5, report=report)
    how = dict(variant='perceiver', size=224, batch=1)
    chosen = {
        name: (cases.training_step, {**how, 'implementation': i})
        for name, i in JAX.items()
        if name != 'reference'  # its 56 layers, written out, take many minutes to compile
    }
    harness.compare(report.name, 'perceiver, 224x224', chosen, repeats=1, report=report)


def flow_forward(report: harness.Report) -> None:
    """Measures the released flow model on one pair of 368x496 frames."""
    chosen = {
        name: (cases.flow_forward, dict(implementation=how))
        for name, how in JAX.items()
        if name != 'plain'  # as slow as the reference
    }
    chosen |= peers.implementations(peers.flow_forward)
    harness.compare(report.name, '368x496', chosen, repeats=1, report=report)


JAX = {'ours': 'auto', 'plain': 'plain', 'reference': 'reference'}


BENCHMARKS = {
    'cross_attend': cross_attend,
    'image_forward': image_forward,
    'compilation': compilation,
    'training_step': training_step,
    'flow_forward': flow_forward,
    'input_pipeline': pipeline.input_pipeline,
    'gpu': gpu.gpu,
}


def main() -> None:
    """Runs the benchmarks that the command line names, and writes their results."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'any of {", ".join(BENCHMARKS)}')
    parser.add_argument(
        '--seconds', type=float, help='of gpu: end within this time, what tells most first'
    )
    parser.add_argument(
        '--tiny', action='store_true', help='of gpu: tiny sizes, on any device, into a new folder'
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    names = arguments.names or [name for name in BENCHMARKS if name != 'gpu']
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f'there is no benchmark {name!r}; there are {", ".join(BENCHMARKS)}')
    if names != ['gpu'] and (arguments.seconds is not None or arguments.tiny):
        parser.error('--seconds and --tiny go with gpu alone')
    device = harness.device()
    if names == ['gpu']:
        folder = Path(tempfile.mkdtemp(prefix='gpu_benchmark_')) if arguments.tiny else None
        report = harness.Report('gpu', device, folder)
        left = arguments.seconds
        if left is not None:
            left -= time.monotonic() - start
        gpu.gpu(report, left, gpu.plan(gpu.TINY if arguments.tiny else gpu.FULL))
        print(f'-> {report.write()}')
        return
    for name in names:
        report = harness.Report(name, device)
        BENCHMARKS[name](report)
        print(f'-> {report.write()}')


if __name__ == '__main__':
    main()
