"""The tables of results, of README and of other pages: rendering, and what is refused."""

import json
import re
import shutil

import pytest

from experiments import papers, table
from perceiver_jax.errors import Refused
from tests.toys.results import EVALUATION, RESULT, write

pytestmark = pytest.mark.smoke

ROOT = table.ROOT
DEMO = RESULT | {'config': 'configs/imagenet.py:demo', 'data': 'digits', 'paper_value': None}
BEGIN, END = table.MARKS
README = f'# Title\n{BEGIN}\nold\n{END}\nmore\n'


@pytest.fixture
def root(tmp_path):
    shutil.copytree(papers.FOLDER, tmp_path / 'results' / 'described')
    (tmp_path / 'README.md').write_text(README)
    docs = tmp_path / 'docs'
    docs.mkdir()
    (docs / 'results.md').write_text(README)
    (docs / 'hardware.md').write_text('\n'.join(table.COMPILED_MARKS))
    marks = [line for name in [*papers.PAPERS, *papers.OURS] for line in table.marks_of(name)]
    (docs / 'tables.md').write_text('\n'.join(marks))
    return tmp_path


def page(root, name='docs/results.md'):
    return (root / name).read_text('utf-8')


def rendered(*results):
    return table.render({table.run_name(x): [x] for x in results}, {})


def row_of(tables, name):
    (line,) = [line for line in tables.splitlines() if f'| {name} |' in line]
    return line.strip('| ').split(' | ')


def notes(tables):
    """The lines below the tables that their numbers refer to."""
    return [line for line in tables.splitlines() if re.match(r'\d+\. ', line)]


def test_pages_agree_with_results():
    table.main(['--check'])


@pytest.mark.parametrize(
    'name', ['README.md', 'docs/results.md', 'docs/tables.md', 'docs/hardware.md']
)
def test_no_line_of_a_generated_table_is_too_wide_to_read(name):
    generated = re.findall('<!-- .*?:begin -->(.*?)<!-- .*?:end -->', page(ROOT, name), re.DOTALL)
    lines = [x for text in generated for x in text.splitlines() if x.startswith('|')]
    assert lines and not [line for line in lines if len(line) > 140]


def test_readme_shows_at_most_twelve_rows_all_of_which_there_are():
    results, sweeps = (
        table.read_results(ROOT / 'results'),
        table.read_sweeps(ROOT / 'results' / 'sweeps'),
    )
    lines = table.selected(results, sweeps).splitlines()[2:]
    assert [line.strip('| ').split(' | ')[0] for line in lines] == [*table.SHOWN]
    assert len(lines) <= 12


def test_paper_row():
    tables = rendered(RESULT, DEMO)
    assert row_of(tables, 'imagenet_fourier') == [
        '1',
        'imagenet_fourier',
        'top1',
        '78.0 %',
        '77.1 %',
        '-0.9 points',
        '-',
        '150,139',
        '2.2 days, TPU v4 x32',
    ]
    assert notes(tables)[0] == (
        '1. imagenet2012: `python -m experiments.launch --config=configs/imagenet.py:fourier '
        '--workdir=runs/imagenet_fourier`'
    )


def test_rows_without_a_paper_value_stand_in_a_table_of_their_own():
    tables = rendered(DEMO, RESULT)
    assert tables.index('imagenet_fourier') < tables.index('not comparable with the paper')
    assert tables.index('not comparable with the paper') < tables.index('imagenet_demo')
    assert row_of(tables, 'imagenet_demo')[:5] == ['1', 'imagenet_demo', 'top1', '77.1 %', 'digits']


def test_end_point_error_is_in_pixels():
    flow = {'task': 'flow', 'config': 'configs/flow.py', 'metric': 'epe', 'paper_value': 1.81}
    row = row_of(rendered(RESULT | flow | {'value': 1.9}), 'flow')
    assert row[3:6] == ['1.81 px', '1.90 px', '+0.09 px']


def test_optional_fields():
    extra = {'command': 'torun --a|b', 'note': 'a tenth of it', 'table': 'ICML Table 1'}
    tables = rendered(RESULT | extra)
    assert row_of(tables, 'imagenet_fourier')[3] == '78.0 % (ICML Table 1)'
    assert notes(tables) == ['1. imagenet2012; a tenth of it: `torun --a|b`']


def test_no_results_is_said():
    assert table.render({}, {}).count('No runs yet.') == 2


def test_only_the_part_between_the_markers_is_rewritten():
    expected = f'# Title\n{BEGIN}\n\nnew\n\n{END}\nmore\n'
    assert table.put_tables(README, 'new') == expected
    assert table.put_tables(expected, 'new') == expected


@pytest.mark.parametrize(
    'readme',
    ['', BEGIN, END, f'{END}{BEGIN}', README + BEGIN, README * 2],
)
def test_markers_must_be_there_once(readme):
    with pytest.raises(ValueError, match='README.md: expected one line <!-- results:begin -->'):
        table.put_tables(readme, 'new')


def test_add_then_check(root, tmp_path):
    table.main(['--add', str(write(tmp_path / 'result.json', DEMO))], root)
    assert json.loads((root / 'results' / 'imagenet_demo.json').read_text()) == DEMO
    assert '| imagenet_demo |' in page(root)
    assert row_of(page(root, 'README.md'), 'imagenet_demo') == [
        'imagenet_demo',
        'top1',
        '-',
        '77.1 %',
        'digits',
        '2.2 days, TPU v4 x32',
    ]
    table.main(['--check'], root)
    write(root / 'results' / 'imagenet_demo.json', DEMO | {'value': 0.5})
    with pytest.raises(ValueError, match='imagenet_demo.json holds another run'):
        table.main(['--add', str(tmp_path / 'result.json')], root)
    stale = {name: page(root, name) for name in ('README.md', 'docs/results.md')}
    with pytest.raises(ValueError, match='README.md and results/ differ; run: make table'):
        table.main(['--check'], root)
    assert stale == {name: page(root, name) for name in stale}
    table.main([], root)
    assert all('50.0 %' in page(root, name) for name in stale)
    (root / 'docs' / 'results.md').write_text(stale['docs/results.md'])
    with pytest.raises(ValueError, match='docs/results.md and results/ differ; run: make table'):
        table.main(['--check'], root)


def test_weights_of_others_stand_in_a_third_table(root, tmp_path):
    table.main(['--add', str(write(tmp_path / 'evaluation.json', EVALUATION))], root)
    name = 'imagenet_io_fourier_data.source_folder'
    assert json.loads((root / 'results' / f'{name}.json').read_text()) == EVALUATION
    results = page(root)
    assert results.count('No runs yet.') == 2
    third = results.partition('## Weights that others trained')[2]
    assert row_of(third, 'imagenet_fourier.pystate') == [
        '1',
        'imagenet_fourier.pystate',
        'top1',
        '78.0 %',
        '77.1 %',
        '-0.9 points',
        '2.2 days, TPU v4 x32',
    ]
    assert notes(third) == [
        '1. imagenet2012; sha256 01234567: `python -m experiments.launch '
        '--config=configs/imagenet.py:io_fourier --config.data.source=folder '
        f'--workdir=runs/{name} --mode=eval --weights=/data/imagenet_fourier.pystate`'
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
    hardware = page(root, 'docs/hardware.md')
    row = row_of(hardware, '`imagenet.py:io_fourier`')
    assert row[1:-1] == [
        '1,024',
        'v3-64',
        '3.00 of 4.00 GiB',
        '512.00 MiB',
        '3.00 MiB',
        '0.71 s',
    ]
    flags = '--config.evaluation.batch_size=64 --config.train.accumulate_steps=2'
    assert row[-1] == '1' and notes(hardware) == [f'1. `{flags}`']
    assert hardware.index('py:perceiver`') < hardware.index('py:io_fourier`')  # as in the papers
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
    assert not list((root / 'results').glob('*.json'))


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
    assert [x.stem for x in sorted((root / 'results').glob('*.json'))] == names
    results = page(root)
    assert [row_of(results, name)[3] for name in names] == ['50.0 %', '77.1 %', '50.0 %']
    assert row_of(results, 'again')[0] == '1'
    assert notes(results)[0] == (
        '1. digits: `python -m experiments.launch --config=configs/imagenet.py:demo '
        '--workdir=runs/again`'
    )
    assert json.loads((root / 'results' / 'again.json').read_text()) == again
    for name in ('', '.x', 'a/b', '../x', '-x', 'a b', 'x' * 201):
        with pytest.raises(Refused, match='--name: expected up to 200 letters'):
            add(again, f'--name={name}')
    with pytest.raises(Refused, match='--name is of the run that --add takes in'):
        table.main(['--name=x'], root)
    assert page(root) == results


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
    row = row_of(page(root), name)
    # The sample deviation of 50 and 52 is the root of 2.
    assert row[3:7] == ['78.0 %', '51.0 ± 1.4 %, 2 runs', '-27.0 points', '0, 1']
    assert row[8] == '2.2 days, TPU v4 x32'
    assert notes(page(root)) == [
        "1. imagenet2012: `python -m experiments.sweep '--config=configs/x.py:small,fold=1|2' "
        f"'--config.seed=0|1' --workdir=runs/{name}`"
    ]
    kept = [json.loads(x) for x in (root / f'results/curves/{name}.jsonl').read_text().splitlines()]
    assert kept[0] == {'run': 0, 'step': 0, 'split': 'train', 'loss': 3.0}
    assert kept[-1] == {'run': 1, 'step': 2, 'split': 'eval', 'loss': 1.0, 'top1': 0.5}
    assert len(kept) == 6
    assert '![Curves of the rows of imagenet](../results/curves/imagenet.png)' in page(root)
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
    assert row_of(page(root), 'seeds')[4] == '77.1 ± 0.0 %, 2 runs'
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
    results = page(root)
    assert '| vit | no | 77.1 % | 0.0 points | 2 | 76.7 % | 44,900,000 |' in results
    assert '| vit | yes | 77.1 % | - | 1 | - | 44,900,000 |' in results
    assert '`python -m experiments.sweep --config=x --workdir=runs/table2`' in results
    assert '](../results/sweeps/table2.png)' in results
    assert (root / 'results' / 'sweeps' / 'table2.png').read_bytes() == b'a picture'
    table.main(['--check'], root)
    # A later state of the same sweep takes its place.
    content = json.loads(sweep_json.read_text())
    del content['rows'][1]
    write(sweep_json, content)
    table.main(['--add', str(sweep_json)], root)
    assert 'yes' not in page(root)
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
