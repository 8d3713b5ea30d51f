"""Measures speed and memory against plain code and against Hugging Face's port.

python -m benchmarks                      all of them, on the CPU
python -m benchmarks cross_attend flow    some
python -m benchmarks gpu                  on a GPU
"""

import argparse

from benchmarks import cases, harness, peers, pipeline


def cross_attend(report: harness.Report) -> None:
    """One cross-attend of 512 latents, by the number of inputs: the slope is to be linear."""
    for num_inputs in (1024, 8192, 50_176, 262_144, 1_048_576):
        chosen = {
            'ours': dict(implementation='auto', passes=PASSES),
            'plain': dict(implementation='plain', passes=PASSES),
            'reference': dict(implementation='reference', passes=PASSES),
        }
        if num_inputs > 100_000:  # the whole matrix, and that of its gradient, would be 4 GB
            del chosen['plain'], chosen['reference']
        harness.compare(
            report.name,
            f'512 x {num_inputs:,} x 261',
            {
                name: (cases.cross_attend, {**how, 'num_inputs': num_inputs})
                for name, how in chosen.items()
            },
            repeats=5 if num_inputs < 100_000 else 1,
            report=report,
        )


PASSES = ('forward', 'gradient', 'gradient, inputs too')


def image_forward(report: harness.Report) -> None:
    """Full-size ImageNet models, one image of 224x224."""
    for variant in ('io_fourier', 'perceiver'):
        chosen = {
            name: (cases.image_forward, dict(implementation=how, variant=variant))
            for name, how in {**JAX, 'ours, unrolled': 'unrolled'}.items()
        }
        if variant == 'io_fourier':
            chosen |= with_peers(peers.image_forward, variant=variant)
        harness.compare(
            report.name, variant, chosen, repeats=3, report=report, with_compilation=True
        )


def training_step(report: harness.Report) -> None:
    """A small model: 128 latents of 256 channels, six self-attends, batches of 16."""
    for size in (32, 64):
        how = dict(variant='io_fourier', size=size, batch=16)
        chosen = {
            name: (cases.training_step, {**how, 'implementation': i, 'changes': cases.SMALL})
            for name, i in JAX.items()
        }
        chosen |= with_peers(peers.training_step, **how, changes=peers.SMALL)
        harness.compare(report.name, f'{size}x{size}', chosen, repeats=7, report=report)


def flow_forward(report: harness.Report) -> None:
    """The released flow model, one pair of 368x496 frames."""
    chosen = {name: (cases.flow_forward, dict(implementation=how)) for name, how in JAX.items()}
    chosen |= with_peers(peers.flow_forward)
    harness.compare(report.name, '368x496', chosen, repeats=2, report=report)


JAX = {'ours': 'auto', 'plain': 'plain', 'reference': 'reference'}


def with_peers(build: harness.Build, **arguments) -> dict:
    """transformers' implementations of a case, if torch and transformers are installed."""
    if not harness.has_peers():
        print('torch and transformers are not installed: not compared with')
        return {}
    return {
        name: (build, {**arguments, 'implementation': name})
        for name in ('transformers', 'transformers, compiled')
    }


BENCHMARKS = {
    'cross_attend': cross_attend,
    'image_forward': image_forward,
    'training_step': training_step,
    'flow_forward': flow_forward,
    'input_pipeline': pipeline.input_pipeline,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}')
    names = parser.parse_args().names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f'there is no benchmark {name!r}; there are {", ".join(BENCHMARKS)}')
    device = harness.device()
    for name in names:
        report = harness.Report(name, device)
        BENCHMARKS[name](report)
        print(f'-> {report.write()}')


if __name__ == '__main__':
    main()
