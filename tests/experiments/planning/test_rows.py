"""The papers' rows, and the search for the smallest slice."""

import importlib
import json

import pytest

from experiments.planning import plan, rows
from perceiver_jax.errors import Refused


def test_every_row_of_the_papers_is_one_of_a_config():
    for task, variant in rows.rows(()):
        config = importlib.import_module(f'configs.{task}').get_config(variant)
        papers = config.paper
        assert (papers.epe if task == 'flow' else papers).to_dict(), variant
        assert papers.source is not None, variant


def test_every_row_was_compiled_for_the_papers_hardware():
    for task, variant in rows.rows(()):
        found = rows.load_plan(rows.FOLDER / rows.file_name(task, variant, 'v3'))
        assert found['fits'] and found['target'].startswith('v3-')
        assert found['config'].split()[0] == f'configs/{task}.py:{variant}'
        batch_size = importlib.import_module(f'configs.{task}').get_config(variant).train.batch_size
        assert found['batch_size'] == batch_size


@pytest.fixture
def needing(monkeypatch):
    """Lets plans need some GiB for each example that a device works on at a time."""
    tried = []

    def set_need(gibibytes):
        def make_plan(config, name, target, make_fit):
            size = config.train.batch_size / target.num_devices
            tried.append((target.name, config.evaluation.batch_size, make_fit))
            temporaries = size * gibibytes * 2**30
            parts = dict(parameters=0, optimizer=0, program=0, batches=0, temporaries=temporaries)
            fits = make_fit or temporaries <= target.device.memory
            return {**parts, 'fits': fits, 'target': target.name, 'has': target.device.memory}

        monkeypatch.setattr(plan, 'make_plan', make_plan)
        return tried

    return set_need


@pytest.mark.parametrize(
    'gibibytes, target, num_tried',
    [(0.9, 'v3-64', 1), (1.0, 'v3-128', 2), (0.4, 'v3-32', 2), (0.01, 'v3-8', 3), (3, 'v3-256', 3)],
)
def test_the_smallest_slice_that_fits_is_found(needing, gibibytes, target, num_tried):
    tried = needing(gibibytes)
    found = rows.smallest('imagenet', 'io_fourier', 'v3')
    assert (found['target'], len(tried)) == (target, num_tried)
    assert all(not make_fit for _, _, make_fit in tried)


def test_what_fits_nowhere_is_made_to_fit_where_the_search_began(needing):
    tried = needing(100)
    assert rows.smallest('imagenet', 'io_fourier', 'v3')['target'] == 'v3-64'
    assert [name for name, _, _ in tried][:-1] == ['v3-64', 'v3-128', 'v3-256', 'v3-512', 'v3-1024']
    assert tried[-1] == ('v3-64', 1024, True)


def test_an_evaluation_batch_has_an_example_for_each_device(needing):
    tried = needing(0.9)
    rows.smallest('flow', 'main', 'v3')
    assert tried[0] == ('v3-64', 64, False)  # of 8 pairs in the config


def test_unknown_rows_are_refused():
    assert list(rows.rows(['io_conv'])) == [('imagenet', 'io_conv')]
    with pytest.raises(Refused, match="'io_con' is no row of the papers. Did you mean io_conv"):
        list(rows.rows(['io_con']))


def test_rows_that_are_there_are_not_compiled_again(tmp_path, monkeypatch, capsys):
    asked = []

    def smallest(task, variant, family):
        asked.append(variant)
        return {'target': 'v3-8'}

    monkeypatch.setattr(rows, 'FOLDER', tmp_path)
    monkeypatch.setattr(rows, 'smallest', smallest)
    monkeypatch.setattr(rows.targets, 'prepare', lambda target: None)
    (tmp_path / 'flow_main_v3.json').write_text('{}')
    rows.main(['main', 'io_conv'])
    assert asked == ['io_conv']
    assert json.loads((tmp_path / 'imagenet_io_conv_v3.json').read_text()) == {'target': 'v3-8'}
    assert '1/2 imagenet io_conv: v3-8' in capsys.readouterr().out
