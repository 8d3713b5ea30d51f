import pytest

from experiments.data.hidden import is_hidden, visible


@pytest.mark.parametrize(
    'name',
    ['._x.png', '.DS_Store', 'Thumbs.db', 'thumbs.db', 'desktop.ini', '.git/x', 'a/._b/x.png'],
)
def test_what_systems_leave_is_hidden(name):
    assert is_hidden(name) and is_hidden(f'folder/{name}') and is_hidden(f'./{name}')


@pytest.mark.parametrize(
    'name', ['x.png', '_x.png', 'x.', 'Thumbs.db.png', 'a/b', './a', '../a', '']
)
def test_data_is_not_hidden(name):
    assert not is_hidden(name)


def test_a_hidden_folder_may_hold_data(tmp_path):
    folder = tmp_path / '.cache'
    for name in ('b.png', 'a/c.png', '._b.png', '.a/c.png', 'a/.c.png'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert visible(folder, '**/*.png') == [folder / 'a/c.png', folder / 'b.png']
    assert visible(folder, '*.png') == [folder / 'b.png']
    assert visible(tmp_path / 'nowhere', '**/*') == []
