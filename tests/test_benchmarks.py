"""What the benchmarks compare computes the same, and their figures arrive in a file."""

import inspect
import json
import os
import subprocess
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import cases, deadline, gpu, harness, reference, table
from benchmarks.deadline import Failed, Measured, Profiled
from configs import imagenet
from experiments.table import ROOT
from experiments.tasks import make_task
from perceiver_jax import RELEASED, optical_flow

pytestmark = pytest.mark.smoke

SMALL = dict(num_latents=7, latent_channels=16, num_blocks=2, num_self_attends_per_block=2)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['io_fourier', 'perceiver'])
def test_the_reference_statement_classifies_as_we_do(variant):
    cross_attends = 2 if variant == 'perceiver' else 1
    changes = dict(encoder={**SMALL, 'num_cross_attends': cross_attends})
    if variant == 'io_fourier':
        changes['decoder'] = dict(query_channels=24)
    images = np.random.default_rng(0).normal(size=(2, 8, 9, 3)).astype(np.float32)
    outputs = {}
    for implementation in ('auto', 'plain', 'unrolled', 'reference'):
        init, apply = cases.imagenet_model(variant, implementation, changes)
        params, state = init(jax.random.key(0), images, False)
        rng = np.random.default_rng(1)  # the ICML output layer starts at zero
        params = jax.tree.map(lambda x, r=rng: x + r.normal(scale=0.1, size=x.shape), params)
        outputs[implementation] = np.asarray(apply(params, state, images, False)[0])
    assert outputs['reference'].std() > 0.1
    for output in outputs.values():
        np.testing.assert_allclose(output, outputs['reference'], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_reference_statement_estimates_flow_as_we_do():
    model = {
        **RELEASED['optical_flow'].arguments,
        'encoder': {**SMALL, 'num_blocks': 1, 'self_attend': dict(num_heads=2)},
        'decoder': dict(cross_attend=dict(use_query_residual=False)),
    }
    frames = np.random.default_rng(0).normal(size=(1, 2, 6, 10, 3)).astype(np.float32)
    transformed = hk.transform(lambda x: optical_flow(x, is_training=False, **model))
    params = transformed.init(jax.random.key(0), frames)
    inputs = model['inputs']
    positions = reference.fourier_positions((6, 10), inputs['num_bands'], inputs['max_resolution'])
    model['encoder'] = {**model['encoder'], 'num_self_attends_per_block': 2}
    expected = reference.optical_flow(params, frames, jnp.asarray(positions), **model)
    assert np.std(expected) > 0.01
    output = transformed.apply(params, None, frames)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-5)


CROSS_ATTENDS = {
    'ours': dict(implementation='auto', grid=True),
    'reference': dict(implementation='reference', grid=False),
}


def test_the_reference_statement_attends_to_pixels_as_we_do_to_their_grid():
    which = 'gradient, inputs too'
    (params, latents, grid), expected = (
        cases.cross_attend(**how, side=3, passes=[which])[which].run()
        for how in CROSS_ATTENDS.values()
    )
    output = params, latents, grid.contents.reshape(1, 9, 3)
    expected = *expected[:2], expected[2][..., :3]
    for ours, theirs in zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_attention_to_pixels_is_that_to_their_array():
    sizes = dict(batch=2, dtype='float32', num_queries=5, side=3)
    ours, of_array = (
        cases.attention_to_pixels('auto', grid=grid, **sizes) for grid in (True, False)
    )
    for which in ('forward', 'gradient'):
        output = ours[which].run()
        assert output.shape == (2, 5, 261) and np.std(output) > 0
        np.testing.assert_allclose(output, of_array[which].run(), rtol=1e-3, atol=1e-5)


def test_a_comparison_becomes_a_table_and_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, 'RESULTS', tmp_path)
    report = harness.Report('example', 'cpu x2')
    chosen = {
        name: (cases.cross_attend, {**how, 'side': 3, 'passes': ['forward']})
        for name, how in CROSS_ATTENDS.items()
    }
    harness.compare(report.name, '512 x 9', chosen, repeats=2, report=report, with_compilation=True)
    path = report.write()
    assert path.name == 'cpu-x2_example.json'
    written = json.loads(path.read_text())
    assert written['device'] == 'cpu x2' and 'jax' in written['versions']
    rows = [(row['case'], row['pass'], row['implementation']) for row in written['rows']]
    assert rows == [('512 x 9', which, name) for which in ('compile', 'forward') for name in chosen]
    assert all(row['seconds'] > 0 for row in written['rows'])
    assert written['rows'][-1]['peak_bytes'] > 0
    assert '512 x 9' in capsys.readouterr().out


def test_a_case_that_cannot_be_built_is_named():
    arguments = dict(implementation='odd', side=3, grid=False, passes=[])
    chosen = {'ours': (cases.cross_attend, arguments)}
    with pytest.raises(RuntimeError, match=r"example, 8, ours: .*not 'odd'"):
        report = harness.Report('example', 'cpu x2')
        harness.compare('example', '8', chosen, repeats=1, report=report)


def test_the_page_of_speed_shows_what_was_measured(tmp_path):
    page = (ROOT / table.PAGE).read_text('utf-8')
    assert table.updated(page) == page, 'run: make table'
    for marks in (table.MARKS, table.GPU_MARKS):
        assert page.partition(marks[0])[2].partition(marks[1])[0].count('\n|') > 10
    for device in (table.DEVICE, table.GPU):  # anything else than what the page shows changes it
        for path in harness.RESULTS.glob('*.json'):
            results = json.loads(path.read_text())
            for row in results['rows']:
                row['seconds'] *= 2 if path.name.startswith(device) else 1
            (tmp_path / path.name).write_text(json.dumps(results))
        assert table.updated(page, tmp_path) != page


@pytest.mark.parametrize('which', ['arrays', 'pixels'])
def test_errors_are_those_of_bfloat16(which):
    if which == 'arrays':
        how = dict(batch=2, num_queries=5, num_keys=40, channels=11, with_errors=True)
        programs = cases.attention('chunked', **how, chunk_size=16)
    else:
        how = dict(batch=2, num_queries=5, side=5, with_errors=True)
        programs = cases.attention_to_pixels('auto', dtype='bfloat16', grid=True, **how)
    for program in programs.values():
        assert 1e-4 < program.more['relative_error'] < 0.01
        assert program.flops > 0 and program.more['temporary_bytes'] > 0


def test_the_training_step_of_a_task_trains():
    encoder = dict(num_latents=3, latent_channels=8, num_self_attends_per_block=1, num_blocks=1)
    changes = dict(encoder={**encoder, 'num_cross_attends': 1}, inputs=dict(num_bands=2))
    how = dict(task='modelnet40', variant='perceiver', shape=(7, 3), batch=2, changes=changes)
    run = cases.task_training_step('auto', **how)['training step'].run
    losses = [run()[-1] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


def test_operations_are_those_that_are_described():
    task = make_task(imagenet.get_config('io_fourier'))
    flops = cases.forward_flops('imagenet', 'io_fourier', (224, 224, 3))
    assert flops == task.describe()['forward_flops']


def test_a_process_measures_one_implementation_after_the_other():
    product, odd = dict(size=8), dict(implementation='odd', side=3, grid=False, passes=[])
    chosen = {
        'ours': (gpu.matmul, product),
        'odd': (cases.cross_attend, odd),
        'again': (gpu.matmul, product),
        'dead': (os._exit, dict(status=3)),
        'never': (gpu.matmul, product),
    }
    answers = list(deadline.measured(chosen, seconds=300, profiled=True))
    kinds = [(type(answer), answer.implementation) for answer in answers]
    assert kinds == [
        (Measured, 'ours'),
        (Profiled, 'ours'),
        (Failed, 'odd'),
        (Measured, 'again'),
        (Profiled, 'again'),
        (Failed, 'dead'),
        (Failed, 'never'),
    ]
    assert answers[0].seconds > 0 and answers[0].flops == 2 * 8**3
    assert answers[1].kernels[0].keys() == {'name', 'ms', 'calls', 'share'}
    assert "not 'odd'" in answers[2].error and answers[5].error.endswith('exit code 3')


def test_a_process_is_killed_when_its_time_is_up():
    answers = list(deadline.measured({'ours': (gpu.matmul, dict(size=8))}, seconds=0.1))
    assert answers == [Failed('ours', 'killed after 0 s')]


def test_what_measures_others_asks_for_no_device(tmp_path):
    script = """
from pathlib import Path
from benchmarks import gpu, harness
from jax._src import xla_bridge
if __name__ == '__main__':
    report = harness.Report('gpu', 'Some GPU x1', Path('.'))
    gpu.gpu(report, 300, gpu.plan(gpu.TINY)[:1])
    assert not xla_bridge.backends_are_initialized()
"""
    path = tmp_path / 'script.py'
    path.write_text(script)
    subprocess.run([sys.executable, path], check=True, cwd=tmp_path)
    written = json.loads((tmp_path / 'some-gpu-x1_gpu.json').read_text())
    assert [row['case'] for row in written['rows']] == ['matmul 64']
    assert 'not_measured' not in written


def stand_in(answers, environments):
    """As `deadline.measured`, with given answers by the name of the implementation."""

    def measured(implementations, *, seconds, environment, profiled):
        environments.append(environment)
        for name in implementations:
            for answer in answers[name]:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer

    return measured


def case(name, *implementations, seconds=10, **fields):
    chosen = {implementation: (gpu.matmul, {}) for implementation in implementations}
    return gpu.Case(name, chosen, seconds, **fields)


def test_what_is_measured_is_written_at_once(tmp_path, monkeypatch, capsys):
    listed = [
        case('matmul 8', 'ours'),
        case('net, batch 64', 'step', examples=(64, 'images'), environment=dict(A='b')),
        case('net, batch 128', 'big', 'step'),
        case('net, batch 256', 'big', 'step'),
        case('net', 'long', seconds=1000),
        case('net', 'stopped'),
        case('net', 'later'),
    ]
    row = dict(which='pass', seconds=2.0, peak_bytes=3, more={'compile_seconds': 4.0})
    answers = {
        'ours': [Measured('ours', flops=100.0, **row)],
        'step': [
            Measured('step', flops=50.0, **row),
            Profiled('step', [dict(name='fusion', ms=1.0, calls=2.0, share=0.5)]),
        ],
        'big': [Failed('big', 'XlaRuntimeError: RESOURCE_EXHAUSTED: Out\nof memory')],
        'stopped': [KeyboardInterrupt()],
    }
    environments = []
    monkeypatch.setattr(gpu, 'measured', stand_in(answers, environments))
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    report = harness.Report('gpu', 'GPU x1', tmp_path)
    with pytest.raises(KeyboardInterrupt):
        gpu.gpu(report, 500, listed)
    written = json.loads((tmp_path / 'gpu-x1_gpu.json').read_text())
    names = [(row['case'], row['implementation']) for row in written['rows']]
    assert names == [('matmul 8', 'ours'), ('net, batch 64', 'step'), ('net, batch 128', 'step')]
    step = written['rows'][1]
    assert (step['images_per_second'], step['share_of_peak']) == (32, 0.5)
    assert step['compile_seconds'] == 4 and step['kernels'][0]['name'] == 'fusion'
    reasons = {
        'net, batch 128: big': 'XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory',
        'net, batch 256: big': 'memory did not suffice for a smaller batch',
        'net, batch 256: step': 'memory did not suffice for a smaller batch',
        'net: long': 'no time left',
        'net: stopped': 'not reached',
        'net: later': 'not reached',
    }
    assert written['not_measured'] == reasons
    assert environments[1] == {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.92', 'A': 'b'}
    assert 'batch 128: big failed: XlaRuntimeError' in capsys.readouterr().out


def test_what_the_autotuner_refuses_once_is_tried_again(tmp_path, monkeypatch):
    answers = {'ours': [Failed('ours', 'INTERNAL: No candidates could be compiled')]}
    environments = []
    monkeypatch.setattr(gpu, 'measured', stand_in(answers, environments))
    report = harness.Report('gpu', 'GPU x1', tmp_path)
    gpu.gpu(report, None, [case('a', 'ours')])
    assert len(environments) == 2
    assert report.not_measured == {'a: ours': 'INTERNAL: No candidates could be compiled'}


def test_what_was_not_measured_is_named(tmp_path, monkeypatch, capsys):
    answers = {'ours': [Measured('ours', 'pass', 1.0, None, None, {})]}
    monkeypatch.setattr(gpu, 'measured', stand_in(answers, []))
    report = harness.Report('gpu', 'GPU x1', tmp_path)
    gpu.gpu(report, 50, [case('a', 'ours'), case('b', 'x', 'y', seconds=60), case('c', 'ours')])
    assert [row['case'] for row in report.rows] == ['a', 'c']
    assert capsys.readouterr().out.endswith('\nnot measured: no time left: b: x; b: y\n')


@pytest.mark.parametrize('sizes', [gpu.FULL, gpu.TINY])
def test_the_cases_of_a_gpu(sizes, monkeypatch):
    monkeypatch.setattr(gpu.peers, 'installed', lambda *names: True)
    listed = gpu.plan(sizes)
    titles = [title for case in listed for title in case.titles]
    first = sizes.batches[0]
    # The peak that shares are taken of; what is right before what is fast.
    assert titles[0] == f'matmul {sizes.matmul:,}: ours' and titles[1].startswith('errors')
    assert titles.index(f'errors, pixels, {sizes.side // 3}x{sizes.side // 3}: ours, pallas') < 12
    assert titles.index(f'io_fourier, batch {first}: ours') < 12
    assert len(set(titles)) == len(titles)
    assert {case.ladder for case in listed} > {'perceiver, plain', 'io_conv, transformers', None}
    for case in listed:
        for name, (build, arguments) in case.implementations.items():
            inspect.signature(build).bind(**arguments)
            if build is gpu.with_flops:
                more = {k: v for k, v in arguments.items() if k not in ('build', 'model', 'times')}
                build = arguments['build']
                inspect.signature(build).bind(**more, flops=1.0)
            of_torch = build.__module__ == 'benchmarks.peers'
            assert of_torch == (case.environment == {'JAX_PLATFORMS': 'cpu'}), name


@pytest.mark.parametrize('names', [[], ['cross_attend'], ['gpu', 'compilation']])
def test_a_time_is_for_the_benchmark_of_a_gpu(names, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmarks', *names, '--seconds', '9'])
    with pytest.raises(SystemExit):
        command.main()
    assert 'go with gpu alone' in capsys.readouterr().err
