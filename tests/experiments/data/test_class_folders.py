import pickle

import pytest

from experiments.data.class_folders import ClassFolders
from perceiver_jax.errors import Refused


@pytest.fixture
def folder(tmp_path):
    for name in ('train/owl/b.png', 'train/cat/a.PNG', 'train/cat/._a.png', 'val/owl/ü.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'val' / '.hidden').mkdir()
    return tmp_path


def listed(folder, *parts, classes=None):
    files = ClassFolders(folder, parts, ('.png',), layout='a/<class>/', classes=classes)
    found = [files[index] for index in range(len(files))]
    return files.classes, [(file.relative_to(folder).as_posix(), label) for file, label in found]


def test_classes_are_those_of_train(folder):
    expected = ['cat', 'owl'], [('val/owl/ü.png', 1)]
    assert listed(folder, 'val') == expected
    files = ClassFolders(folder, ['val'], ('.png',), layout='')
    assert pickle.loads(pickle.dumps(files))[0] == (folder / 'val/owl/ü.png', 1)
    assert str(files) == str(folder / 'val')


def test_classes_that_are_given_come_first(folder):
    classes = ['dog', 'owl', 'ant', 'cat']
    assert listed(folder, 'val', classes=classes) == (classes, [('val/owl/ü.png', 1)])
    both = [('train/owl/b.png', 1), ('train/cat/a.PNG', 3), ('val/owl/ü.png', 1)]
    assert listed(folder, 'train', 'val', classes=classes) == (classes, both)


def test_without_train_the_classes_are_those_that_are_read(folder):
    (folder / 'train').rename(folder / 'more')
    assert listed(folder, 'val') == (['owl'], [('val/owl/ü.png', 0)])
    assert listed(folder, 'val', 'more')[0] == ['cat', 'owl']


def test_folders_that_are_no_class_are_refused(folder):
    with pytest.raises(Refused, match=r"train: 'cat' is no class of the list .*mean cats\?"):
        listed(folder, 'train', classes=['cats', 'owl'])
    (folder / 'train' / 'owl').rename(folder / 'train' / 'owls')
    with pytest.raises(Refused, match=r"val: 'owl' is no class of .*train. .* owls\?"):
        listed(folder, 'val')
    with pytest.raises(Refused, match="val: 'owl' may be several classes of the list"):
        listed(folder, 'val', classes=['owl', 'owl'])


def test_what_is_not_there_is_named(folder):
    with pytest.raises(Refused, match='test is missing: expected a/<class>/'):
        listed(folder, 'test')
    (folder / 'val' / 'owl' / 'ü.png').unlink()
    with pytest.raises(Refused, match=r"val has no files <class>/\*\('.png',\)"):
        listed(folder, 'val')
