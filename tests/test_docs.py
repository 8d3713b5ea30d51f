"""README and docs/: links lead somewhere; commands, marks and messages are those of the code."""

import ast
import importlib
import pathlib
import re

import jax
import numpy as np
import pytest
from absl import flags

from experiments import launch
from experiments.tasks import make_task
from experiments.training.loop import split
from perceiver_jax import RELEASED, Pretrained, compare_arguments, load
from perceiver_jax.weights import foreign_files, translation
from perceiver_jax.weights.transfer import HEADS

pytestmark = pytest.mark.smoke

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Flags of the commands that argparse parses, and of the programs of others that the pages show.
OF_COMMANDS = {
    flag
    for folder in ('experiments', 'benchmarks')
    for path in (ROOT / folder).rglob('*.py')
    for flag in re.findall(r"'--(\w+)'", path.read_text('utf-8'))
}
OF_GCLOUD = {'zone', 'accelerator-type', 'version', 'spot', 'worker', 'command'}
OF_GCLOUD |= {'node-id', 'runtime-version', 'data-disk'}
OF_UV = {'python'}
OF_TFDS = {'file_format'}

of_each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def anchor_of(title):
    """What a heading is linked to by."""
    return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


def anchors(page):
    """What the headings of a page are linked to by."""
    titles = re.findall('^#+ (.*)', page.read_text('utf-8'), re.MULTILINE)
    return {anchor_of(title) for title in titles}


@of_each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)', page.read_text('utf-8')):
        if not target.startswith('https://'):
            name, _, anchor = target.partition('#')
            linked = page.parent / name if name else page
            assert linked.exists() and (not anchor or anchor in anchors(linked)), target


@of_each_page
def test_tables_are_legible_as_text(page):
    lines = re.findall(r'^\|.*', page.read_text('utf-8'), re.MULTILINE)
    assert [line for line in lines if len(line) > 140] == []


def test_each_choice_in_the_code_has_its_section():
    """Sections before 'Without a mark' are named by a mark each, those behind it by none."""
    text = (ROOT / 'docs' / 'deviations.md').read_text('utf-8')
    marked, unmarked = (
        [anchor_of(title) for title in re.findall('^### (.*)', part, re.MULTILINE)]
        for part in text.split('\n## Without a mark\n')
    )
    assert len({*marked, *unmarked}) == len(marked + unmarked)
    named = set()
    for folder in ('configs', 'experiments', 'perceiver_jax'):
        for path in (ROOT / folder).rglob('*.py'):
            lines = re.sub(r'\n\s*(# )?', ' ', path.read_text('utf-8'))
            for mark in re.finditer(r'our choice(: deviations\.md#([\w-]+))?', lines, re.I):
                about = lines[mark.start() - 60 : mark.end() + 60]
                assert mark[2] in marked, f'{path}: {about}'
                named.add(mark[2])
    assert named == {*marked}


def texts(path):
    """The strings of a file, but docstrings; in an f-string NUL stands for what is filled in.

    Constants of the module that hold a string are filled in.
    """
    tree = ast.parse(path.read_text('utf-8'))
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(node.value.value, str)
    }

    def text(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        return constants.get(getattr(node.value, 'id', None), '\0')

    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(map(text, node.values))
        elif isinstance(node, ast.Constant) and node not in docstrings:
            yield str(node.value)


def test_messages_are_those_of_the_code():
    """The fixed parts of a message stand in one string of the code, in this order."""
    code = '\n'.join(
        string.replace('\n', ' ')
        for folder in ('configs', 'experiments', 'perceiver_jax')
        for path in (ROOT / folder).rglob('*.py')
        for string in texts(path)
    )
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text('utf-8')
    blocks = re.findall(r'^```\n(.*?)\n```', page, re.DOTALL | re.MULTILINE)
    messages = [line for block in blocks for line in block.splitlines()]
    assert len(messages) > 50
    for message in messages:
        parts = re.split(r'<[^<>]*>', message)
        assert max(map(len, parts)) >= 9, message
        assert re.search('.*'.join(map(re.escape, parts)), code), message


@of_each_page
def test_commands_name_what_there_is(page):
    text = page.read_text('utf-8')
    configs = [
        importlib.import_module(f'configs.{task}').get_config(variant)
        for task, variant in set(re.findall(r'configs/(\w+)\.py:([\w,=]+)', text))
    ]
    of_launch = {flag.name for flag in flags.FLAGS.get_flags_for_module(launch)}
    known = of_launch | OF_COMMANDS | OF_GCLOUD | OF_UV | OF_TFDS
    for flag in re.findall(r'(?<![\w-])--([a-z][\w.-]*\w)', text):
        *folders, key = flag.split('.')
        if folders[:1] == ['config']:
            holders = [config.to_dict() for config in configs]
            for folder in folders[1:]:
                holders = [holder[folder] for holder in holders if folder in holder]
            assert any(key in holder for holder in holders), flag
        else:
            assert flag in known, flag
    assert set(re.findall(r'--mode=(\w+)', text)) <= set(launch.MODES)
    for module in re.findall(r'python -m ([\w.]+)', text):
        assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module


@pytest.mark.parametrize('name', RELEASED)
def test_the_config_of_a_released_file_is_that_of_its_model(name):
    text = (ROOT / 'docs' / 'weights.md').read_text('utf-8')
    _, text = text.split('\n## Which config evaluates which file\n')
    (row,) = re.findall(rf'^\| `{name}` \|.*', text, re.MULTILINE)
    found = re.search(r'`configs/(\w+)\.py:(\w+)`', row)
    released = RELEASED[name]
    if found is None:
        assert 'none yet' in row
        return
    task, variant = found.groups()
    model = make_task(importlib.import_module(f'configs.{task}').get_config(variant)).pretrained(
        {}, {}
    )
    assert model.function == released.function
    assert compare_arguments(model.function, released.arguments, model.arguments) == {}
    assert model.front_end == released.front_end


def test_each_file_of_the_package_is_on_its_page():
    text = (ROOT / 'docs' / 'modules.md').read_text('utf-8')
    _, text = text.split('\n## The files\n')
    named = re.findall(r'`([\w/]+(?:\.py|/))`', text)
    package = [x for x in (ROOT / 'perceiver_jax').iterdir() if x.name[0] not in '_.']
    there = [f'{x.name}/' if x.is_dir() else x.name for x in package if x.name != 'py.typed']
    assert sorted(named) == sorted(there)


def test_a_linear_probe_is_one_setting():
    """Each row of the table leaves the output layer alone to be trained."""
    text = (ROOT / 'docs' / 'fine_tuning.md').read_text('utf-8')
    _, table = text.split('`--config.train.freeze=` |\n|---|---|\n')
    for row in table.partition('\n\n')[0].splitlines():
        *variants, freeze = re.findall('`([^`]+)`', row)
        for variant in variants:
            task, name = re.fullmatch(r'configs/(\w+)\.py:(\w+)', variant).groups()
            config = importlib.import_module(f'configs.{task}').get_config(name)
            config.model.num_classes = 3
            params, _ = jax.eval_shape(make_task(config).init, jax.random.key(0))
            trained, _ = split(params, ast.literal_eval(freeze.strip('"')))
            (head,) = trained.keys()
            assert head in HEADS['image_classifier'], variant


def test_the_python_of_fine_tuning_runs(tmp_path, monkeypatch):
    """Block after block as it is written, on noise, with files of small models."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    encoder = dict(num_latents=3, latent_channels=8, num_blocks=1, num_self_attends_per_block=1)
    for name, file in (
        ('imagenet_fourier', 'imagenet_fourier_position_encoding.pystate'),
        ('imagenet_conv', 'imagenet_conv_preprocessing.pystate'),
        ('imagenet_learned', 'imagenet_learned_position_encoding.pystate'),
    ):
        released = RELEASED[name]
        decoder = {**released.arguments['decoder'], 'query_channels': 8}
        changes = dict(encoder=encoder, decoder=decoder)
        if name == 'imagenet_learned':
            narrow = dict(contents_channels=3, position_channels=3, project_positions_to=3)
            changes['inputs'] = {**released.arguments['inputs'], **narrow}
        small = released._replace(
            arguments={**released.arguments, **changes},
            front_end={**released.front_end, 'size': 16},
        )
        monkeypatch.setitem(RELEASED, name, small)
        model = Pretrained(small.function, small.arguments, small.front_end, {}, {})
        weights = jax.tree.map(
            lambda x: rng.random(x.shape).astype(x.dtype),
            jax.eval_shape(model.init, jax.random.key(0)),
        )
        foreign_files.write_deepmind(file, *translation.to_deepmind(*weights))
    names = {'images': rng.normal(size=(2, 16, 16, 3)).astype('f4'), 'labels': np.arange(2)}
    text = (ROOT / 'docs' / 'fine_tuning.md').read_text('utf-8')
    for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(block, names)
    assert names['features'].shape == (2, 8)
    saved, before = load('cats_and_dogs'), names['pretrained'].params
    assert saved.classes == ['cat', 'dog']
    np.testing.assert_array_equal(saved.params['encoder']['latents'], before['encoder']['latents'])
    assert not np.array_equal(saved.params['decoder']['query'], before['decoder']['query'])
    for kind, average in names['model'].state['inputs/conv7x7/batch_norm'].items():
        same = names['state']['inputs/conv7x7/batch_norm'][kind]
        np.testing.assert_array_equal(same, average)
    assert names['found'].resampled == ('inputs/position_encoding:positions',)
    assert names['ready'].front_end['size'] == 112
