"""Who may import whom; what README promises about the layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TASKS = sorted(
    {path.stem for path in ROOT.glob('configs/*.py')}
    & {path.stem for path in ROOT.glob('experiments/*.py')} - {'__init__'}
)


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
    assert len(found) > 1, folder
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f'{package}.') for package in packages)


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
        more = ONLY_WHERE_USED.get(path.name, ()) if folder == 'perceiver_jax' else ()
        assert {x for x in imported(path) if not within(x, *allowed, *more)} == set(), path


# Files of perceiver_jax that read and write formats, and what they import within functions.
ONLY_WHERE_USED = {
    'checkpoints.py': ('safetensors', 'torch'),
    'pretrained.py': ('safetensors',),
    'front_ends.py': ('av', 'cv2', 'scipy'),
}


def test_importing_the_package_imports_no_library_of_formats():
    script = 'import sys, perceiver_jax; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert 'perceiver_jax.checkpoints' in loaded, done.stderr
    unwanted = {name for names in ONLY_WHERE_USED.values() for name in names} - {'scipy'}
    assert not unwanted & set(loaded)


def test_data_imports_no_model_and_nothing_else_of_the_experiments():
    for path in files('experiments/data'):
        for name in imported(path):
            if not within(name, *(f'perceiver_jax.{x}' for x in ('front_ends', 'files', 'tiling'))):
                assert not within(name, 'perceiver_jax', 'haiku'), f'{path}: {name}'
            # `from experiments import data` and `from experiments.data import x` are fine.
            assert not within(name, 'experiments') or within(name, 'experiments.data'), path


def test_the_loop_names_no_task_and_a_task_no_other():
    assert 'imagenet' in TASKS
    modules = {task: f'experiments.{task}' for task in TASKS}
    for name in ('train', *TASKS):
        others = [module for task, module in modules.items() if task != name]
        path = ROOT / 'experiments' / f'{name}.py'
        assert {x for x in imported(path) if within(x, *others)} == set(), path


def test_nothing_imports_the_benchmarks_but_they_themselves():
    for path in (
        x for folder in ('perceiver_jax', 'configs', 'experiments') for x in files(folder)
    ):
        assert not {x for x in imported(path) if within(x, 'benchmarks')}, path


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
