"""What predictions of several classifiers share."""

import argparse

import numpy as np
import pytest

from experiments import classes
from perceiver_jax.errors import Refused
from tests.toys.damaged_tables import check_reader
from tests.toys.known_model import KnownModel


def test_a_softmax_is_of_one_class_among_all():
    logits = np.log([[1.0, 2, 5], [4, 3, 1]])
    expected = [[1 / 8, 2 / 8, 5 / 8], [4 / 8, 3 / 8, 1 / 8]]
    np.testing.assert_allclose(classes.probabilities(logits, 'softmax'), expected)
    np.testing.assert_allclose(classes.probabilities(logits + 1e4, 'softmax'), expected)


def test_a_sigmoid_is_of_each_class_by_itself():
    logits = np.log([1.0, 3, 1 / 4, 99]).astype(np.float32)
    chances = classes.probabilities(logits, 'sigmoid')
    np.testing.assert_allclose(chances, [1 / 2, 3 / 4, 1 / 5, 99 / 100], rtol=1e-6)
    assert chances.dtype == np.float64


@pytest.mark.parametrize('activation', [None, 'relu', ''])
def test_another_activation_is_refused(activation):
    message = f"expected 'softmax' or 'sigmoid', got {activation!r}"
    with pytest.raises(Refused, match=message):
        classes.probabilities(np.zeros(3), activation)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_logits_that_are_not_finite_are_refused(activation):
    with pytest.raises(Refused, match='the model gives no finite logits: its weights may have'):
        classes.probabilities(np.array([0.0, np.nan]), activation)


def test_the_best_classes_come_first():
    logits = np.log([1.0, 2, 4, 8, 16, 32, 0.5])
    chances = classes.probabilities(logits, 'softmax')
    best = classes.best_classes(chances, list('abcdefg'))
    assert [x['label'] for x in best] == list('fedcb')
    np.testing.assert_allclose([x['probability'] for x in best], np.array([32, 16, 8, 4, 2]) / 63.5)
    assert len(classes.best_classes(chances[:2], 'ab')) == 2


@pytest.mark.parametrize(
    'name, content',
    [
        ('a.txt', 'tench\ngreat white shark\nowl, tawny\n\n'),
        ('a.csv', 'name,other\ntench,x\ngreat white shark,y\n"owl, tawny",z\n'),
        ('a.txt', '\ufefftench\r\ngreat white shark\r\nowl, tawny\r\n'),
        (
            'class_labels_indices.csv',  # AudioSet's
            'index,mid,display_name\r\n0,/m/1,"tench"\r\n1,/m/2,great white shark\r\n'
            '2,/t/3,"owl, tawny"\r\n',
        ),
        ('a.CSV', '\ufeffname\ntench\ngreat white shark\n"owl, tawny"\n'),
    ],
)
def test_names_of_classes_come_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    model = KnownModel(None, {}, {'num_classes': 3}, classes=list('abc'))
    names = classes.class_names(model, tmp_path / name)
    assert names == ['tench', 'great white shark', 'owl, tawny']
    model.arguments = {'num_classes': 5}
    with pytest.raises(ValueError, match=f'{name}: expected the names of 5 classes, got 3'):
        classes.class_names(model, tmp_path / name)


@pytest.mark.parametrize(
    'name, content, message',
    [
        (
            'a.csv',
            b'index;name\n0;tench\n1;owl\n',
            r"expected a column `name`, or .* got \['index;name'\]",
        ),
        ('a.csv', b'index,name\n0,tench\n1\n', 'line 3: expected 2 values'),
        ('a.csv', b'index,name\n0,tench\n\n1,\n', 'line 4: there is no name'),
        ('a.csv', b'index,display_name\n0,tench\n1,\n', 'line 3: there is no name'),
        ('a.csv', b'index,display_name\n1,b\n0,a\n', "line 2: expected index 0, got '1'"),
        ('a.csv', b'mid,display_name\n/m/2,owl\n', 'line 2: expected index 0, got None'),
        ('a.txt', 'tench\nbärin\n'.encode('latin-1'), 'line 2: expected UTF-8, .* at byte 7'),
    ],
)
def test_files_that_name_no_classes_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name}[,:] {message}'):
        classes.class_names(KnownModel(None, {}, {'num_classes': 2}), tmp_path / name)


@pytest.mark.parametrize('name', ['a.txt', 'a.csv'])
def test_damaged_files_of_names_are_read_or_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text('name\ntench\nBärin\n"owl, tawny"\n')
    model = KnownModel(None, {}, {'num_classes': 3 if name == 'a.csv' else 4})
    check_reader(lambda: classes.class_names(model, path), path)


def test_without_a_file_the_model_names_its_classes():
    model = KnownModel(None, {}, {'num_classes': 2}, classes=['cat', 'dog'])
    assert classes.class_names(model, None) == ['cat', 'dog']
    model.classes = None
    assert classes.class_names(model, None) == ['class 0', 'class 1']
    model.classes = ['cat']  # weights of a run with fewer classes than logits
    assert classes.class_names(model, None) == ['cat', 'class 1']


def asked(attention=None, latents=None):
    model = KnownModel(None, {}, params={'encoder': {'latents': np.zeros((600, 4))}})
    ranges = None if latents is None else [range(*ends) for ends in latents]
    return classes.shown_attention(model, argparse.Namespace(attention=attention, latents=ranges))


def test_what_a_picture_shows_of_attention():
    assert asked() == asked('weights') == classes.Shown(False, None) and not asked().one_head
    assert asked('logits') == classes.Shown(True, None) and asked('logits').one_head
    assert asked('weights', [(5, 6), (0, 2), (4, 7)]).latents == [5, 0, 1, 4, 6]


@pytest.mark.parametrize(
    'latents, message',
    [
        ([(0, 1), (599, 601)], '--latents: expected 0 to 599, got 600'),
        ([(0, 600)], '--latents: expected up to 512, got 600 latents'),
    ],
)
def test_latents_that_cannot_be_drawn_are_refused(latents, message):
    with pytest.raises(Refused, match=f'^{message}$'):
        asked(latents=latents)
