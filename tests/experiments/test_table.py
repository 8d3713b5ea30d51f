"""README's tables of results: rendering, and what is refused."""

import json

import pytest

from experiments import table
from perceiver_jax.errors import Refused
from tests.toys.results import EVALUATION, RESULT, write

DEMO = RESULT | {'config': 'configs/imagenet.py:demo', 'data': 'digits', 'paper_value': None}
README = f'# Title\n{table.BEGIN}\nold\n{table.END}\nmore\n'


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'README.md').write_text(README)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'hardware.md').write_text('\n'.join(table.COMPILED_MARKS))
    return tmp_path


def rendered(*results):
    return table.render({table.run_name(x): [x] for x in results}, {})


def cells(tables, name):
    (line,) = [line for line in tables.splitlines() if line.startswith(f'| {name} |')]
    return line.strip('| ').split(' | ')


def test_readme_agrees_with_results():
    table.main(['--check'])


def test_paper_row():
    assert cells(rendered(RESULT, DEMO), 'imagenet_fourier') == [
        'imagenet_fourier',
        'top1',
        '78.0 %',
        '77.1 %',
        '-0.9 points',
        'imagenet2012',
        '150,139',
        '2.2 days, TPU v4 x32',
        '`python -m experiments.launch --config=configs/imagenet.py:fourier '
        '--workdir=runs/imagenet_fourier`',
    ]


def test_rows_without_a_paper_value_stand_in_a_table_of_their_own():
    tables = rendered(DEMO, RESULT)
    assert tables.index('imagenet_fourier') < tables.index('not comparable with the paper')
    assert tables.index('not comparable with the paper') < tables.index('imagenet_demo')
    assert cells(tables, 'imagenet_demo')[:4] == ['imagenet_demo', 'top1', '77.1 %', 'digits']


def test_end_point_error_is_in_pixels():
    flow = {'task': 'flow', 'config': 'configs/flow.py', 'metric': 'epe', 'paper_value': 1.81}
    row = cells(rendered(RESULT | flow | {'value': 1.9}), 'flow')
    assert row[2:5] == ['1.81 px', '1.90 px', '+0.09 px']


def test_optional_fields():
    extra = {'command': 'torun --a|b', 'note': 'a tenth of it', 'table': 'ICML Table 1'}
    row = cells(rendered(RESULT | extra), 'imagenet_fourier')
    assert row[2] == '78.0 % (ICML Table 1)'
    assert row[5] == 'imagenet2012; a tenth of it'
    assert row[8] == r'`torun --a\|b`'


def test_no_results_is_said():
    assert table.render({}, {}).count('No runs yet.') == 2


def test_only_the_part_between_the_markers_is_rewritten():
    expected = f'# Title\n{table.BEGIN}\n\nnew\n\n{table.END}\nmore\n'
    assert table.updated_readme(README, 'new') == expected
    assert table.updated_readme(expected, 'new') == expected


@pytest.mark.parametrize(
    'readme',
    ['', table.BEGIN, table.END, f'{table.END}{table.BEGIN}', README + table.BEGIN, README * 2],
)
def test_markers_must_be_there_once(readme):
    with pytest.raises(ValueError, match='README.md: expected one line <!-- results:begin -->'):
        table.updated_readme(readme, 'new')


def test_add_then_check(root, tmp_path):
    table.main(['--add', str(write(tmp_path / 'result.json', DEMO))], root)
    assert json.loads((root / 'results' / 'imagenet_demo.json').read_text()) == DEMO
    assert '| imagenet_demo |' in (root / 'README.md').read_text()
    table.main(['--check'], root)
    write(root / 'results' / 'imagenet_demo.json', DEMO | {'value': 0.5})
    with pytest.raises(ValueError, match='imagenet_demo.json holds another run'):
        table.main(['--add', str(tmp_path / 'result.json')], root)
    before = (root / 'README.md').read_text()
    with pytest.raises(ValueError, match='README.md and results/ differ; run: make table'):
        table.main(['--check'], root)
    assert (root / 'README.md').read_text() == before
    table.main([], root)
    assert '50.0 %' in (root / 'README.md').read_text()


def test_weights_of_others_stand_in_a_third_table(root, tmp_path):
    table.main(['--add', str(write(tmp_path / 'evaluation.json', EVALUATION))], root)
    name = 'imagenet_io_fourier_data.source_folder'
    assert json.loads((root / 'results' / f'{name}.json').read_text()) == EVALUATION
    readme = (root / 'README.md').read_text()
    assert readme.count('No runs yet.') == 2
    third = readme.partition('Weights that others trained, such as the authors')[2]
    assert cells(third, 'imagenet_fourier.pystate (sha256 01234567)') == [
        'imagenet_fourier.pystate (sha256 01234567)',
        'top1',
        '78.0 %',
        '77.1 %',
        '-0.9 points',
        'imagenet2012',
        '2.2 days, TPU v4 x32',
        '`python -m experiments.launch --config=configs/imagenet.py:io_fourier '
        f'--config.data.source=folder --workdir=runs/{name} --mode=eval '
        '--weights=/data/imagenet_fourier.pystate`',
    ]
    table.main(['--check'], root)

    about = {'checkpoint': 'last', 'step': 6, 'metric': 'top1', 'value': 0.5}
    with pytest.raises(Refused, match='result.json is its result'):
        table.main(['--add', str(write(tmp_path / 'evaluation.json', about))], root)


PLAN = {
    'config': 'configs/imagenet.py:io_fourier --config.evaluation.batch_size=64',
    'target': 'v3-64',
    'num_devices': 64,
    'batch_size': 1024,
    'remedy': '--config.train.accumulate_steps=2',
    'sum': 3 * 2**30,
    'has': 4 * 2**30,
    'evaluation': 2**29,
    'collectives': {'all-reduce': {'count': 2, 'bytes': 3 * 2**20}},
    'seconds_per_step': 0.7123,
}


def test_what_was_compiled_stands_on_its_own_page(root):
    folder = root / 'results' / 'compiled'
    folder.mkdir()
    other = PLAN | {'config': 'configs/imagenet.py:perceiver', 'remedy': None}
    write(folder / 'a.json', PLAN)
    write(folder / 'b.json', other)
    table.main([], root)
    page = (root / 'docs' / 'hardware.md').read_text()
    row = cells(page, '`configs/imagenet.py:io_fourier`')
    assert row[1:-1] == [
        '1,024',
        'v3-64',
        '3.00 GiB of 4.00 GiB',
        '512.00 MiB',
        '3.00 MiB',
        '0.71 s',
    ]
    flags = '--config.evaluation.batch_size=64 --config.train.accumulate_steps=2'
    assert row[-1] == f'`{flags}`'
    assert page.index('py:perceiver`') < page.index('py:io_fourier`')  # as in the papers
    write(folder / 'a.json', PLAN | {'target': 'v3-128'})
    with pytest.raises(Refused, match='docs/hardware.md and results/ differ; run: make table'):
        table.main(['--check'], root)
    write(folder / 'a.json', {'config': 'x'})
    with pytest.raises(Refused, match='a.json: keys missing: batch_size, coll'):
        table.main([], root)


def test_add_refuses_an_incomplete_result(root, tmp_path):
    incomplete = {key: value for key, value in DEMO.items() if key not in ('value', 'steps')}
    with pytest.raises(ValueError, match='run.json: keys missing: steps, value'):
        table.main(['--add', str(write(tmp_path / 'run.json', incomplete))], root)
    assert list((root / 'results').iterdir()) == []


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        ('configs/imagenet.py', 'imagenet'),
        ('configs/imagenet.py:demo', 'imagenet_demo'),
        ('configs/imagenet.py:perceiver,cross_attends=4', 'imagenet_perceiver_cross_attends_4'),
        ('configs/imagenet.py:demo --config.seed=1', 'imagenet_demo_seed_1'),
        ('my configs/x.py:a --config.data.path=~/b c', 'imagenet_a_data.path_b_c'),
        (
            'configs/imagenet.py:demo --config.images.mean=(0.9,) --config.loss.smoothing=-1e-3',
            'imagenet_demo_images.mean_0.9_loss.smoothing_-1e-3',
        ),
    ],
)
def test_run_name_tells_variants_and_overrides_apart(config, name):
    assert table.run_name(RESULT | {'config': config}) == name


def test_runs_of_one_variant_stand_beside_each_other(root, tmp_path):
    def add(result, *options):
        path = write(tmp_path / 'result.json', result)
        table.main([f'--add={path}', *options], root)

    again = DEMO | {'value': 0.5, 'seed': 1, 'date': '2026-11-26T20:10:27+00:00'}
    add(DEMO)
    with pytest.raises(Refused, match='demo.json holds another run; --name=imagenet_demo_2, or an'):
        add(again)
    add(again, '--name=again')
    add(again | {'config': 'configs/imagenet.py:demo --config.seed=1'})
    names = ['again', 'imagenet_demo', 'imagenet_demo_seed_1']
    assert [x.stem for x in sorted((root / 'results').iterdir())] == names
    readme = (root / 'README.md').read_text()
    assert [cells(readme, name)[2] for name in names] == ['50.0 %', '77.1 %', '50.0 %']
    assert cells(readme, 'again')[-1] == (
        '`python -m experiments.launch --config=configs/imagenet.py:demo --workdir=runs/again`'
    )
    assert json.loads((root / 'results' / 'again.json').read_text()) == again
    for name in ('', '.x', 'a/b', '../x', '-x', 'a b', 'x' * 201):
        with pytest.raises(Refused, match='--name: expected up to 200 letters'):
            add(again, f'--name={name}')
    with pytest.raises(Refused, match='--name is of the run that --add takes in'):
        table.main(['--name=x'], root)
    assert (root / 'README.md').read_text() == readme


def test_hidden_files_are_no_results(root):
    write(root / 'results' / 'a.json', DEMO)
    (root / 'results' / '._a.json').write_bytes(b'\0\5\x16\7\xff')  # macOS's
    assert [*table.read_results(root / 'results')] == ['a']


ROW = {'values': {}, 'results': [RESULT], 'paper': None, 'folders': ['x']}


@pytest.fixture
def sweep_json(tmp_path):
    """A sweep of two rows, of two runs and of one."""
    rows = [
        {'values': {'model': 'vit', 'permuted': 'no'}, 'results': 2 * [RESULT], 'paper': 0.767,
         'folders': ['a', 'b']},
        {'values': {'model': 'vit', 'permuted': 'yes'}, 'results': [RESULT], 'paper': None,
         'folders': ['c']},
    ]  # fmt: skip
    folder = tmp_path / 'table2'
    folder.mkdir()
    (folder / 'sweep.png').write_bytes(b'a picture')
    content = {'command': 'python -m experiments.sweep --config=x', 'rows': rows}
    return write(folder / 'sweep.json', content)


def lines(*losses):
    """Of metrics.jsonl, the last of them an evaluation."""
    rows = [{'step': i, 'split': 'train', 'loss': x, 'top5': 0.9} for i, x in enumerate(losses)]
    return rows + [{'step': len(losses), 'split': 'eval', 'loss': 1.0, 'top1': 0.5}]


def write_run(folder, result, rows):
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return str(write(folder / 'result.json', result))


def test_runs_that_differ_in_the_seed_are_one_row_with_curves(root, tmp_path):
    config, values = 'configs/x.py:small,fold={} --config.seed={}', (0.5, 0.52)
    results = [
        RESULT | {'config': config.format(1 + i, i), 'seed': i, 'value': x, 'params_sha256': str(i)}
        for i, x in enumerate(values)
    ]
    paths = [write_run(tmp_path / f'r{i}', x, lines(3.0, 2.0)) for i, x in enumerate(results)]
    table.main(['--add', *paths], root)
    name = 'imagenet_small_fold'
    assert json.loads((root / 'results' / f'{name}.json').read_text()) == {'runs': results}
    readme = (root / 'README.md').read_text()
    # The sample deviation of 50 and 52 is the root of 2.
    row = cells(readme.replace(r'\|', '/'), name)
    assert row[2:5] == ['78.0 %', '51.0 ± 1.4 %, 2 runs', '-27.0 points']
    assert row[7] == '2.2 days a run, TPU v4 x32'
    assert row[8] == (
        "`python -m experiments.sweep '--config=configs/x.py:small,fold=1/2' "
        f"'--config.seed=0/1' --workdir=runs/{name}`"
    )
    kept = [json.loads(x) for x in (root / f'results/curves/{name}.jsonl').read_text().splitlines()]
    assert kept[0] == {'run': 0, 'step': 0, 'split': 'train', 'loss': 3.0}
    assert kept[-1] == {'run': 1, 'step': 2, 'split': 'eval', 'loss': 1.0, 'top1': 0.5}
    assert len(kept) == 6
    assert '![Curves of the rows of imagenet](results/curves/imagenet.png)' in readme
    assert (root / 'results/curves/imagenet.png').read_bytes().startswith(b'\x89PNG')
    table.main(['--check'], root)


def test_of_a_row_two_hundred_lines_are_kept(root, tmp_path):
    path = write_run(tmp_path / 'run', DEMO, lines(*range(1000)))
    table.main(['--add', path], root)
    kept = (root / 'results/curves/imagenet_demo.jsonl').read_text().splitlines()
    assert len(kept) == 200
    assert [json.loads(x)['step'] for x in (kept[0], *kept[-2:])] == [0, 999, 1000]


@pytest.mark.parametrize(
    'change, said',
    [
        ({'steps': 3}, 'runs of one row differ in steps: 150139 and 3'),
        ({'data': 'digits'}, "runs of one row differ in data: 'imagenet2012' and 'digits'"),
        ({'config': 'configs/imagenet.py:x'}, 'runs of one row differ in config'),
        ({'params_sha256': '5f1d'}, 'one run is there twice, by its params_sha256'),
    ],
)
def test_what_is_no_row_of_runs_is_refused(root, tmp_path, change, said):
    first, other = (RESULT | {'seed': i} for i in (0, 1))
    other |= {'params_sha256': 'other'} | change
    paths = [str(write(tmp_path / f'{i}.json', x)) for i, x in enumerate((first, other))]
    with pytest.raises(Refused, match=said):
        table.main(['--add', *paths, '--name=x'], root)
    write(root / 'results' / 'x.json', {'runs': [first, other]})
    with pytest.raises(Refused, match=said):
        table.main([], root)


def test_a_sweep_of_seeds_alone_is_a_row_like_the_others(root, sweep_json):
    results = [RESULT | {'seed': i, 'params_sha256': str(i)} for i in (0, 1)]
    rows = [{**ROW, 'results': results, 'folders': ['seed=0', 'seed=1']}]
    for i, result in enumerate(results):
        write_run(sweep_json.parent / f'seed={i}', result, lines(1.0))
    write(sweep_json, {'command': 'python -m experiments.sweep', 'rows': rows})
    table.main(['--add', str(sweep_json), '--name=seeds'], root)
    assert cells((root / 'README.md').read_text(), 'seeds')[3] == '77.1 ± 0.0 %, 2 runs'
    assert not (root / 'results' / 'sweeps').exists()
    assert len((root / 'results/curves/seeds.jsonl').read_text().splitlines()) == 4
    with pytest.raises(Refused, match='a sweep.json stands alone'):
        table.main(['--add', str(sweep_json), str(sweep_json)], root)


def test_rows_of_a_sweep_keep_their_curves(root, sweep_json):
    for name in 'abc':
        write_run(sweep_json.parent / name, RESULT, lines(2.0, 1.0))
    table.main(['--add', str(sweep_json)], root)
    folder = root / 'results' / 'curves'
    assert len((folder / 'table2/model=vit,permuted=no.jsonl').read_text().splitlines()) == 6
    assert len((folder / 'table2/model=vit,permuted=yes.jsonl').read_text().splitlines()) == 3
    assert (folder / 'imagenet.png').exists()


def test_a_sweep_has_a_table_and_a_picture_of_its_own(root, sweep_json):
    table.main(['--add', str(sweep_json)], root)
    readme = (root / 'README.md').read_text()
    assert '| vit | no | 77.1 % | 0.0 points | 2 | 76.7 % | 44,900,000 |' in readme
    assert '| vit | yes | 77.1 % | - | 1 | - | 44,900,000 |' in readme
    assert '`python -m experiments.sweep --config=x --workdir=runs/table2`' in readme
    assert '](results/sweeps/table2.png)' in readme
    assert (root / 'results' / 'sweeps' / 'table2.png').read_bytes() == b'a picture'
    table.main(['--check'], root)
    # A later state of the same sweep takes its place.
    content = json.loads(sweep_json.read_text())
    del content['rows'][1]
    write(sweep_json, content)
    table.main(['--add', str(sweep_json)], root)
    assert 'yes' not in (root / 'README.md').read_text()
    write(sweep_json, content | {'command': 'another'})
    with pytest.raises(Refused, match='table2.json holds another sweep'):
        table.main(['--add', str(sweep_json)], root)


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'rows': []}, 'expected rows of the same keys, each with results'),
        ({'rows': [3]}, 'a row is 3, expected an object'),
        ({'rows': [{**ROW, 'results': [], 'folders': []}]}, 'each with results'),
        ({'rows': [{**ROW, 'results': [3]}]}, 'a result is 3, expected'),
        ({'rows': [{**ROW, 'results': [{}]}]}, 'keys missing: config'),
        ({'rows': [{**ROW, 'folders': [3]}]}, 'expected a name for each result'),
        ({'rows': [{**ROW, 'folders': []}]}, 'expected a name for each result'),
        ({'command': 3}, "'command' is 3, expected str"),
    ],
)
def test_a_damaged_sweep_is_refused(root, sweep_json, changes, said):
    write(sweep_json, json.loads(sweep_json.read_text()) | changes)
    with pytest.raises(Refused, match=said):
        table.main(['--add', str(sweep_json)], root)
    assert not (root / 'results' / 'sweeps').exists()
