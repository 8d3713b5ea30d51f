"""What a contributor reads: versions agree, and commands and links lead to what there is."""

import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml

import perceiver_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
PAGES = ('CHANGELOG.md', 'CONTRIBUTING.md', '.github/pull_request_template.md')


def read(name):
    return (ROOT / name).read_text('utf-8')


def test_the_version_is_everywhere_the_same():
    newest = re.search(r'^## (\S+)', read('CHANGELOG.md'), re.MULTILINE)[1]
    citation = yaml.safe_load(read('CITATION.cff'))
    assert perceiver_jax.__version__ == newest == citation['version']
    assert f'version={{{newest}}}' in read('README.md')
    assert citation['license'] == PROJECT['project']['license']


@pytest.mark.parametrize('page', PAGES)
def test_commands_and_links_lead_to_what_there_is(page):
    text = read(page)
    targets = set(re.findall(r'^([\w-]+):', read('Makefile'), re.MULTILINE))
    assert set(re.findall(r'(?:^|`)make ([a-z-]+)', text, re.MULTILINE)) <= targets
    for module in re.findall(r'python\s+-m\s+((?:experiments|tests)\.[\w.]+)', text):
        assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module
    for link in re.findall(r'\]\(([^)#]+)\)', text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r'`((?:tests|experiments|examples|perceiver_jax)/[\w/.]+)`', text):
        assert (ROOT / path).exists(), path


def test_every_target_is_in_the_help():
    makefile = read('Makefile')
    targets = set(re.findall(r'^([a-z-]+):(?!=)', makefile, re.MULTILINE))
    phony = re.search(r'^\.PHONY: (.*)', makefile, re.MULTILINE)[1].split()
    printed = subprocess.check_output(['make', '-s', 'help'], cwd=ROOT, text=True).splitlines()
    assert targets == {*phony} == {line.split()[1] for line in printed}
    assert all(re.fullmatch(r'make [a-z-]+\t\S.{,99}', line) for line in printed)


def test_the_workflow_runs_each_python_that_is_supported():
    (job,) = yaml.safe_load(read('.github/workflows/test.yml'))['jobs'].values()
    rows = job['strategy']['matrix']['include']
    classifiers = PROJECT['project']['classifiers']
    supported = [x.split(' :: ')[-1] for x in classifiers if 'Python :: 3.' in x]
    assert [row['python'] for row in rows] == supported
    assert f'>={supported[0]}' == PROJECT['project']['requires-python']
    requirements = read('requirements.txt')  # which the workflow changes for the newest jax
    pinned = re.search(r'jax ([\d.]+) is the last for Python 3.11', requirements)[1]
    assert re.search(rf'^(jax=={re.escape(pinned)}|\.)$', requirements, re.MULTILINE)
    assert [row['jax'] for row in rows] == [pinned, 'newest', 'newest']


def test_the_workflow_lets_the_package_ask_for_jax():
    """What its sed leaves names no version of jax, but the checkout with its bounds."""
    (job,) = yaml.safe_load(read('.github/workflows/test.yml'))['jobs'].values()
    (command,) = [step['run'] for step in job['steps'] if 'sed -i' in step.get('run', '')]
    command = shlex.split(command.replace('sed -i', 'sed'))
    lines = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    assert '.' in lines and 'dm-haiku==' in ''.join(lines)
    assert not [line for line in lines if line.startswith('jax')]


def test_the_tiers_are_the_markers(request):
    markers = {x.partition(':')[0] for x in PROJECT['tool']['pytest']['ini_options']['markers']}
    tiers = re.findall(r'^\| `(\w+)` \|', read('CONTRIBUTING.md'), re.MULTILINE)
    assert {*tiers, 'gpu', 'tpu'} == markers
    assert request.node.get_closest_marker('unit')  # nothing here says so
