"""The examples: their notebook is theirs, and runs; what they print and draw."""

import ast
import re

import cv2
import matplotlib
import matplotlib.pyplot as plt
import pytest

import perceiver_jax
from tests.toys import notebook

pytestmark = pytest.mark.smoke

SCRIPTS = sorted(notebook.FOLDER.glob('*.py'))


@pytest.fixture
def printed(request, tmp_path, monkeypatch, capsys):
    """What the cells of a script print, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {}
    with matplotlib.rc_context({'backend': 'agg'}):
        for piece in notebook.pieces(request.param)[1]:
            exec(piece, names)
        plt.close('all')
    return capsys.readouterr().out.splitlines()


def shares(line):
    return [float(x) / 100 for x in re.findall(r'([\d.]+)%', line)]


def test_the_notebook_is_made_of_the_scripts():
    assert {path.stem for path in SCRIPTS} == set(notebook.SCRIPTS)
    assert notebook.NOTEBOOK.read_text('utf-8') == notebook.notebook()


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_uses_public_names_alone(path):
    text = path.read_text('utf-8')
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 60
    assert f'python -m examples.{path.stem}' in ast.get_docstring(tree)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith('perceiver_jax') for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith('perceiver_jax'):
            assert node.module == 'perceiver_jax'
            imported |= {name.name for name in node.names}
    assert imported and imported <= set(perceiver_jax.__all__)


@pytest.mark.slow
@pytest.mark.parametrize('printed', ['regression'], indirect=True)
def test_points_that_are_not_on_the_circle_mislead_least_squares_alone(printed):
    theirs, ours = ([float(x) for x in re.findall(r'\d\.\d+', line)] for line in printed)
    assert len(ours) == 3 and max(ours) < 0.1 < 0.2 < min(theirs)
    assert cv2.imread('regression.png').std() > 10


@pytest.mark.slow
@pytest.mark.parametrize('printed', ['attention_maps'], indirect=True)
def test_attention_goes_to_the_digit_that_is_named(printed):
    (guessed, spread), (accuracy, share) = map(shares, printed)
    assert guessed < 0.2 < 0.6 < accuracy
    assert spread == pytest.approx(0.25, abs=0.1) and share > 0.35
    assert cv2.imread('attention_maps.png').std() > 10


@pytest.mark.slow
@pytest.mark.parametrize('printed', ['fine_tuning'], indirect=True)
def test_a_saved_model_learns_other_classes_from_fewer_images(printed):
    (tuned,), (probe,), (anew,) = map(shares, printed)
    assert tuned > anew + 0.05 and probe > 1 / 3
