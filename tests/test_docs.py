"""The pages of docs/: links lead somewhere, commands name what there is."""

import importlib
import pathlib
import re

import pytest
from absl import flags

from experiments import launch
from experiments.tasks import make_task
from perceiver_jax import RELEASED, compare_arguments

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / 'docs').glob('*.md'))
# Flags of the other commands that the pages show.
OF_TABLE = {'add', 'name'}
OF_GCLOUD = {'zone', 'accelerator-type', 'version', 'spot', 'worker', 'command'}
OF_GCLOUD |= {'node-id', 'runtime-version', 'data-disk'}
OF_UV = {'python'}
OF_ROWS = {'family'}
OF_PREDICT_AND_CONVERT = {'attention', 'latents', 'conv_kernel'}

of_each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def anchors(page):
    """What the headings of a page are linked to by."""
    titles = re.findall('^#+ (.*)', page.read_text('utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


@of_each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)', page.read_text('utf-8')):
        if not target.startswith('https://'):
            name, _, anchor = target.partition('#')
            linked = page.parent / name if name else page
            assert linked.exists() and (not anchor or anchor in anchors(linked)), target


@of_each_page
def test_commands_name_what_there_is(page):
    text = page.read_text('utf-8')
    configs = [
        importlib.import_module(f'configs.{task}').get_config(variant)
        for task, variant in set(re.findall(r'configs/(\w+)\.py:([\w,=]+)', text))
    ]
    of_launch = {flag.name for flag in flags.FLAGS.get_flags_for_module(launch)}
    known = of_launch | OF_TABLE | OF_GCLOUD | OF_UV | OF_ROWS | OF_PREDICT_AND_CONVERT
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
