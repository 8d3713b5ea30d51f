"""What is installed: sdist and wheel, built from a copy and imported from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import perceiver_jax

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parent.parent
# Beside what MANIFEST.in names.
ALWAYS_THERE = ['LICENSE', 'README.md', 'perceiver_jax', 'pyproject.toml']


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    """Paths relative to a folder of the files below it."""
    found = {x.relative_to(folder).as_posix() for x in folder.rglob('*') if x.is_file()}
    return {name for name in found if '__pycache__' not in name}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what an sdist is made of, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp('source')
    lines = [x.split() for x in (ROOT / 'MANIFEST.in').read_text('utf-8').splitlines()]
    named = [name for rule, *names in lines if rule in ('graft', 'include') for name in names]
    for name in [*ALWAYS_THERE, *named]:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope='module')
def sdist(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sdist')
    script = f'from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})'
    run(sys.executable, '-c', script, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """The wheel of the sdist; no network is needed."""
    folder = tmp_path_factory.mktemp('wheel')
    command = ['pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    command += ['--disable-pip-version-check', '-w', folder, sdist]
    run(sys.executable, '-m', *command)
    (built,) = folder.glob('*.whl')
    return built


def test_the_sdist_is_a_checkout(source, sdist):
    """So whoever packages it can run the tests."""
    name = f'perceiver_jax-{perceiver_jax.__version__}'
    assert sdist.name == f'{name}.tar.gz'
    with tarfile.open(sdist) as archive:
        held = {x.name.removeprefix(f'{name}/') for x in archive if x.isfile()}
    there = {x for x in files(source) if '.egg-info/' not in x}
    assert {'tests/test_wheel.py', 'tests/golden/primitives.npz', 'configs/flow.py'} < there
    assert there - held == set()


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    installed = {name for name in names if '.dist-info/' not in name}
    package = ROOT / 'perceiver_jax'
    sources = {x.relative_to(ROOT).as_posix() for x in package.rglob('*.py')}
    assert installed == sources | {'perceiver_jax/py.typed'}
    assert any(name.endswith('LICENSE') for name in names)
    assert f'perceiver_jax-{perceiver_jax.__version__}-' in wheel.name


def test_every_public_name_is_imported_from_an_empty_folder(wheel, tmp_path):
    """Within a second beyond what jax takes; of the processor's time, whatever else runs."""
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    script = (
        'import time, jax\n'
        'before = time.process_time()\n'
        'import perceiver_jax as p\n'
        'seconds = time.process_time() - before\n'
        'from perceiver_jax import *\n'
        'print(p.__file__)\n'
        'print(len([getattr(p, name) for name in p.__all__]))\n'
        'print(len([getattr(p.front_ends, name) for name in p.front_ends.__all__]))\n'
        'print(seconds)\n'
    )
    printed = run(
        sys.executable, '-c', script, cwd=empty, env={**os.environ, 'PYTHONPATH': str(site)}
    )
    file, names, front_ends, seconds = printed.splitlines()
    assert file == str(site / 'perceiver_jax' / '__init__.py')
    assert int(names) == len(perceiver_jax.__all__)
    assert int(front_ends) == len(perceiver_jax.front_ends.__all__)
    assert float(seconds) < 1
