"""What the benchmarks compare computes the same, and their figures arrive in a file."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases, harness, reference, table
from experiments.table import ROOT, updated_readme
from perceiver_jax import RELEASED, optical_flow

SMALL = dict(num_latents=7, latent_channels=16, num_blocks=2, num_self_attends_per_block=2)


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


def test_readme_shows_what_was_measured(tmp_path):
    readme = (ROOT / 'README.md').read_text('utf-8')
    assert updated_readme(readme, table.speed_table(), table.MARKS) == readme, 'run: make table'
    for path in harness.RESULTS.glob(f'{table.DEVICE}_*.json'):
        results = json.loads(path.read_text())
        for row in results['rows']:  # anything else than what README shows changes the table
            row['seconds'] *= 2
        (tmp_path / path.name).write_text(json.dumps(results))
    assert updated_readme(readme, table.speed_table(tmp_path), table.MARKS) != readme
