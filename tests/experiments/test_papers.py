"""The papers' tables: their rows are the configs', and what is here stands beside them."""

import importlib
import json
import shutil

import pytest

from configs import audioset, flow, imagenet
from experiments import papers
from experiments.planning.rows import FOLDER as COMPILED
from perceiver_jax.errors import Refused
from tests.toys.results import EVALUATION, RESULT


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(papers.FOLDER, tmp_path / 'described')
    shutil.copytree(COMPILED, tmp_path / 'compiled')
    return tmp_path


def rows_of(folder, name, *rows):
    """The cells of a table, row by row."""
    lines = papers.papers_tables(rows, folder)[name].splitlines()[2:]
    return [line.removeprefix('| ').removesuffix(' |').split(' | ') for line in lines]


def test_a_row_is_what_the_config_states_and_what_is_here(folder):
    assert rows_of(folder, 'ICML table 6')[6] == [
        '8 (at start)',
        '73.7 %',
        '`perceiver,placement=start`',
        '44.9M; 44.9M',
        '707.2B; 706.3B',
        'v3-64',
        'no',
    ]


def test_the_errors_of_optical_flow_are_three(folder):
    assert rows_of(folder, 'IO table 3')[-1] == [
        *('', 'conv', 'yes', 'yes', '16', '1,024', '2.06 px', '2.67 px', '6.12 px'),
        '`conv,size=small`',
        '-; 28.0M',
        '-; 147.1B',
        'v3-32',
        'no',
    ]


def test_a_model_that_is_not_here_has_the_papers_figures_alone(folder):
    found = {row[0]: row[1:] for row in rows_of(folder, 'IO table 7')}
    nothing = ['-', '-']
    assert found['NFNet-F6+SAM'] == ['no', '86.5 %', '-', '438.4M', '377.3B', *nothing]
    assert found['Perceiver IO, A (2D FF)'][1:5] == [
        '79.0 %',
        '`io_fourier`',
        '48.4M; 48.4M',
        '407B; 406.1B',
    ]


def test_what_was_not_compiled_has_no_slice(folder):
    assert rows_of(folder, 'ICML table 1')[0][-2:] == ['-', 'no']


def test_a_row_was_trained_here_where_it_was_on_the_papers_data(folder):
    config = 'configs/imagenet.py:io_fourier --config.data.path=/a'
    ours = RESULT | {'config': config, 'paper_value': 0.79}
    digits = ours | {'paper_value': None, 'value': 0.9}
    weights = EVALUATION | {'config': config, 'value': 0.8}

    def trained(*rows):
        found = {row[3]: row[-1] for row in rows_of(folder, 'IO table 7', *rows)}
        assert found['`io_conv`'] == 'no'
        return found['`io_fourier`']

    assert trained([digits], [weights]) == 'no'
    assert trained([digits], [ours], [weights]) == '77.1 %'
    assert trained([ours, ours], [ours | {'value': 0.5}]) == '77.1 ± 0.0 %, 2 runs; 50.0 %'


def test_variants_of_no_paper_have_their_sizes(folder):
    assert rows_of(folder, 'modelnet40')[1] == [
        '`small,model=vit2`',
        'ModelNet40, 1,024 points of a shape',
        '0.2M',
        '139.5M',
    ]


def test_every_model_that_a_config_states_figures_of_stands_in_its_table():
    papers_of = {}
    for name, table in papers.PAPERS.items():
        for row in table.rows:
            if row.variant:
                config = importlib.import_module(f'configs.{table.task}').get_config(row.variant)
                papers_of.setdefault(config.paper.source, []).append(name)
                assert config.paper.value is not None or 'out of memory' in row.cells
    assert all(source in names for source, names in papers_of.items())
    # All that the configs state of a paper, whatever they build with it.
    rows = {
        (config.paper.source, config.paper.value)
        for task, variant in papers.models()
        for config in [importlib.import_module(f'configs.{task}').get_config(variant)]
    }
    stated = [imagenet.ICML, imagenet.IO, imagenet.NETWORKS, audioset.ICML, audioset.IO]
    assert {(x.source, x.value) for of_table in stated for x in of_table.values()} <= rows
    epe = [flow.get_config(x).paper.epe.to_dict() for task, x in papers.models() if task == 'flow']
    assert [x for x in epe if x != flow.NO_EPE] == [*flow.EPE.values()]


def test_a_model_without_sizes_is_named(folder):
    path = folder / 'described' / 'flow.json'
    sizes = json.loads(path.read_text())
    del sizes['main']
    path.write_text(json.dumps(sizes))
    with pytest.raises(Refused, match="flow.json: no 'main'; run: python -m experiments.papers"):
        papers.papers_tables([], folder)
    path.write_text(json.dumps(sizes | {'main': {'parameters': -1, 'forward_flops': 3}}))
    with pytest.raises(Refused, match="flow.json: 'main': expected numbers from 0 on"):
        papers.papers_tables([], folder)


def test_the_command_describes_every_model_once(tmp_path, monkeypatch):
    described = {'inputs': [3, 5], 'parameters': 7, 'forward_flops': 11, 'paper': {}}
    asked = []

    def describe(task, variant):
        asked.append((task, variant))
        return described if task == 'flow' else {'parameters': 2, 'forward_flops': 3, 'paper': {}}

    monkeypatch.setattr(papers, 'FOLDER', tmp_path)
    monkeypatch.setattr(papers, 'describe', describe)
    papers.main([])
    assert asked == [*papers.models()]
    sizes = papers.read_sizes(tmp_path / 'flow.json')
    assert sizes['main'] == {'inputs': [3, 5], 'parameters': 7, 'forward_flops': 11}
    assert papers.read_sizes(tmp_path / 'imagenet.json')['demo'] == {
        'parameters': 2,
        'forward_flops': 3,
    }
    assert {path.stem for path in tmp_path.iterdir()} == {task for task, _ in asked}
