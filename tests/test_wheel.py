"""What is installed: the wheel, built from the checkout and imported from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import perceiver_jax

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of a copy, so that nothing is left in the checkout; no network is needed."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    for name in ('perceiver_jax', 'configs', 'experiments'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    command += ['--disable-pip-version-check', '-w', folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob('*.whl')
    return built


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    installed = {name for name in names if '.dist-info/' not in name}
    package = ROOT / 'perceiver_jax'
    sources = {x.relative_to(ROOT).as_posix() for x in package.rglob('*.py')}
    assert installed == sources | {'perceiver_jax/py.typed'}
    assert any(name.endswith('LICENSE') for name in names)
    assert f'perceiver_jax-{perceiver_jax.__version__}-' in wheel.name


def test_every_public_name_is_imported_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    script = (
        'import perceiver_jax as p\n'
        'from perceiver_jax import *\n'
        'print(p.__file__)\n'
        'print(len([getattr(p, name) for name in p.__all__]))\n'
        'print(len([getattr(p.front_ends, name) for name in p.front_ends.__all__]))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        cwd=empty,
        env={**os.environ, 'PYTHONPATH': str(site)},
    )
    file, names, front_ends = done.stdout.splitlines()
    assert file == str(site / 'perceiver_jax' / '__init__.py'), done.stderr
    assert int(names) == len(perceiver_jax.__all__)
    assert int(front_ends) == len(perceiver_jax.front_ends.__all__)
