"""Who may import whom: the floors of the house, checked on every import statement."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import tasks

ROOT = Path(__file__).resolve().parent.parent
# Folders with a trainer, with predictions, or both.
TASKS = sorted(
    {
        path.parent.name
        for name in ('task', 'predict')
        for path in (ROOT / 'experiments').glob(f'*/{name}.py')
    }
)

# From the top: each may import from the floors below, and from its own room. The rooms of a floor
# stand side by side.
FLOORS = [
    ['launch', 'predict', 'convert', 'submit', 'table', 'compare', 'sweep'],  # the commands
    ['papers'],
    ['open_model', 'planning'],
    ['tasks'],
    [*TASKS],
    ['classes', 'results'],
    ['data'],
    ['training'],
    ['pictures', 'config_parsing'],
    ['command_line', 'keys', 'run_config'],
    ['memory', 'paths'],
]

# What a reader may use of perceiver_jax: nothing that builds a model.
FOR_READERS = ('errors', 'files', 'front_ends', 'limits', 'pickles', 'tiling')

# Files of perceiver_jax that read and write formats, and what they import within functions.
ONLY_WHERE_USED = {
    'weights/foreign_files.py': ('safetensors', 'torch'),
    'weights/hub.py': ('huggingface_hub',),
    'weights/loading.py': ('safetensors',),
    'weights/pretrained.py': ('safetensors',),
    'front_ends/images.py': ('cv2', 'scipy'),
    'front_ends/media.py': ('av', 'cv2'),
}


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions: 'a.b' for from a import b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            names |= {'.'.join([*base, alias.name]) for alias in node.names}
    return names


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob('*.py'))
    assert found, folder
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f'{package}.') for package in packages)


def room_of(path: Path) -> str:
    """The file or folder directly under experiments/: 'launch', 'flow'."""
    return path.relative_to(ROOT / 'experiments').parts[0].removesuffix('.py')


@pytest.mark.parametrize(
    'folder, allowed',
    [
        ('perceiver_jax', ('perceiver_jax', 'jax', 'haiku', 'numpy')),
        ('configs', ('configs', 'ml_collections')),
    ],
)
def test_a_package_imports_only(folder, allowed):
    allowed += tuple(sys.stdlib_module_names)
    for path in files(folder):
        name = path.relative_to(ROOT / folder).as_posix()
        more = ONLY_WHERE_USED.get(name, ()) if folder == 'perceiver_jax' else ()
        assert {x for x in imported(path) if not within(x, *allowed, *more)} == set(), path


def test_importing_the_package_imports_no_library_of_formats():
    script = 'import sys, perceiver_jax; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert 'perceiver_jax.weights.foreign_files' in loaded, done.stderr
    unwanted = {name for names in ONLY_WHERE_USED.values() for name in names} - {'scipy'}
    assert not unwanted & set(loaded)


def test_every_room_stands_on_a_floor():
    rooms = {room_of(path) for path in files('experiments')} - {'__init__'}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_nothing_imports_upwards_and_no_room_imports_one_beside_it():
    for number, floor in enumerate(FLOORS):
        below = [f'experiments.{x}' for rooms in FLOORS[number + 1 :] for x in rooms]
        for path in files('experiments'):
            room = room_of(path)
            if room in floor:
                of_ours = {x for x in imported(path) if within(x, 'experiments')}
                allowed = [f'experiments.{room}', *below]
                assert {x for x in of_ours if not within(x, *allowed)} == set(), path


def test_only_a_task_and_its_predictions_name_a_model():
    readers = [
        *files('experiments/data'),
        *(
            path
            for task in TASKS
            for path in files(f'experiments/{task}')
            if path.name not in ('task.py', 'predict.py')
        ),
    ]
    allowed = tuple(f'perceiver_jax.{name}' for name in FOR_READERS)
    for path in readers:
        models = {x for x in imported(path) if within(x, 'perceiver_jax', 'haiku')}
        assert {x for x in models if not within(x, *allowed)} == set(), path


def test_no_task_is_called_by_another_name_somewhere():
    configs = {path.stem for path in files('configs')} - {'__init__', 'common'}
    with_trainer = {path.parent.name for path in files('experiments') if path.name == 'task.py'}
    assert configs == with_trainer == set(tasks.TASKS)


def test_packages_of_the_experiments_are_empty():
    for path in files('experiments'):
        assert path.name != '__init__.py' or not path.read_text(), path


def test_nothing_imports_the_benchmarks_but_they_themselves():
    for path in (
        x for folder in ('perceiver_jax', 'configs', 'experiments') for x in files(folder)
    ):
        assert not {x for x in imported(path) if within(x, 'benchmarks')}, path


@pytest.mark.parametrize('task', tasks.TASKS)
def test_a_process_that_reads_data_imports_no_more_than_it_needs(task):
    script = (
        f'import sys, experiments.{task}.sources, experiments.{task}.transforms;print(*sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert f'experiments.{task}.sources' in loaded, done.stderr
    unwanted = {'matplotlib', 'tensorflow_datasets', 'experiments.training.loop'}
    assert not unwanted & loaded
    assert f'experiments.{task}.task' not in loaded


def test_imported_sees_every_way_to_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    path = tmp_path / 'experiments' / 'data' / 'digits.py'
    path.parent.mkdir(parents=True)
    path.write_text(
        'import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n'
        'def later():\n  import h as i\n'
    )
    expected = {'a.b', 'c.d', 'experiments.data.e', 'experiments.f.g', 'h'}
    assert imported(path) == expected
