import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import haiku as hk
import pytest

import perceiver_jax

PACKAGE = Path(perceiver_jax.__file__).parent
MODULES = [
    module
    for module in (getattr(perceiver_jax, name) for name in perceiver_jax.__all__)
    if inspect.isclass(module) and issubclass(module, hk.Module)
]


def described(docstring, section):
    """The names that a section of a docstring describes."""
    text = re.search(rf'\n{section}:\n(.*?)(\n\n|$)', docstring, re.DOTALL)
    return re.findall(r'^  (\w+): ', text[1], re.MULTILINE) if text else []


def test_every_public_name_is_there():
    assert len(perceiver_jax.__all__) == len(set(perceiver_jax.__all__))
    assert all(hasattr(perceiver_jax, name) for name in perceiver_jax.__all__)
    assert len(MODULES) == 15


@pytest.mark.parametrize('module', MODULES)
def test_help_describes_every_field_and_argument(module):
    fields = [field.name for field in dataclasses.fields(module)]
    assert described(inspect.getdoc(module), 'Attributes') == fields
    call = module.__call__
    arguments = list(inspect.signature(call).parameters)[1:]
    assert described(inspect.getdoc(call), 'Args') == arguments
    assert 'Returns:' in call.__doc__


def test_the_version_stands_in_one_place():
    project = tomllib.loads((PACKAGE.parent / 'pyproject.toml').read_text())
    assert project['project']['dynamic'] == ['version']
    dynamic = project['tool']['setuptools']['dynamic']
    assert dynamic['version'] == {'attr': 'perceiver_jax.__version__'}
    assert re.fullmatch(r'\d+\.\d+\.\d+', perceiver_jax.__version__)


def test_it_is_typed():
    assert (PACKAGE / 'py.typed').exists()
    project = tomllib.loads((PACKAGE.parent / 'pyproject.toml').read_text())
    assert project['tool']['setuptools']['package-data']['perceiver_jax'] == ['py.typed']
