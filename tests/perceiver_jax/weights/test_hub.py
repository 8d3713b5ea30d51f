import fnmatch
import json
import os
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perceiver_jax import Refused, load
from perceiver_jax.weights import hub
from perceiver_jax.weights.loading import carries_arguments
from tests.toys.huggingface_folder import small_model, write_folder

NAME = 'deepmind/small'


@pytest.fixture(scope='module')
def model():
    return small_model('mlm_bytes')


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Has a stub download what is in `files` to a folder laid out as the hub's cache."""
    monkeypatch.chdir(tmp_path)
    asked = types.SimpleNamespace(patterns=[], error=None, files=tmp_path / 'online')
    asked.files.mkdir()
    root = tmp_path / 'cache' / f'models--{NAME.replace("/", "--")}'
    snapshot, blobs = root / 'snapshots' / 'a1b2c3', root / 'blobs'
    for folder in (snapshot, blobs, root / 'refs'):
        folder.mkdir(parents=True)
    (root / 'refs' / 'main').write_text('a1b2c3')

    def snapshot_download(name, *, allow_patterns):
        asked.patterns.append(allow_patterns)
        if asked.error is not None:
            raise asked.error
        assert name == NAME
        for number, file in enumerate(sorted(asked.files.iterdir())):
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                (blobs / f'{number}').write_bytes(file.read_bytes())
                (snapshot / file.name).unlink(missing_ok=True)
                (snapshot / file.name).symlink_to(Path('../../blobs', f'{number}'))
        return str(snapshot)

    stub = types.ModuleType('huggingface_hub')
    stub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', stub)
    asked.snapshot = snapshot
    return asked


def test_a_name_is_fetched_and_loaded_by_its_config(model, asked):
    write_folder(asked.files, 'mlm_bytes', model)
    (asked.files / 'pytorch_model.bin').write_bytes(b'the same once more')
    (asked.files / 'README.md').write_text('much')
    loaded = load(NAME)
    assert loaded.arguments == model.arguments
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    assert sorted(os.listdir(asked.snapshot)) == ['config.json', 'model.safetensors']
    assert len(asked.patterns) == 1
    assert carries_arguments(NAME)


def test_several_files_of_safetensors_are_fetched_by_their_index(model, asked):
    write_folder(asked.files, 'mlm_bytes', model)
    whole = asked.files / 'model.safetensors'
    tensors = load_file(whole)
    whole.unlink()
    parts = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(tensors)}
    for part in set(parts.values()):
        content = {name: tensors[name] for name in tensors if parts[name] == part}
        save_file(content, asked.files / part)
    index = asked.files / 'model.safetensors.index.json'
    index.write_text(json.dumps({'metadata': {}, 'weight_map': parts}))
    for path in (NAME, asked.files, index):
        loaded = load(path)
        assert loaded.arguments == model.arguments
        jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)


def test_files_of_torch_are_fetched_where_there_are_no_others(asked):
    (asked.files / 'config.json').write_text('{}')
    (asked.files / 'pytorch_model.bin').write_bytes(b'x')
    assert hub.locate(NAME) == asked.snapshot
    assert sorted(os.listdir(asked.snapshot)) == ['config.json', 'pytorch_model.bin']
    assert len(asked.patterns) == 2


def test_a_path_goes_before_a_name(asked, tmp_path):
    Path(NAME).mkdir(parents=True)
    assert hub.locate(NAME) == Path(NAME)
    assert not asked.patterns


@pytest.mark.parametrize('path', ['a', './a', '/a/b', 'a/b/c', '../a', '~/a', 'runs/a.pystate'])
def test_what_is_no_name_is_not_asked_for(asked, path):
    with pytest.raises(Refused, match=r'does not exist\.$'):
        hub.locate(path)
    assert not asked.patterns


def test_both_readings_are_told_where_the_hub_cannot_be_asked(asked):
    asked.error = ConnectionError('cannot find\nthe files in the cache')
    with pytest.raises(Refused) as refused:
        load(NAME)
    assert str(refused.value) == (
        "deepmind/small does not exist as a path, and as a name on Hugging Face's hub it could not "
        'be fetched, nor is it in the cache. Is the name right, and is this machine online? '
        'ConnectionError: cannot find the files in the cache'
    )


def test_a_cache_without_the_weights_is_told(asked):
    (asked.files / 'config.json').write_text('{}')
    with pytest.raises(Refused, match='does not exist as a path, .* has no weights in .*a1b2c3'):
        load(NAME)


def test_both_readings_are_told_without_the_package(no_hub):
    message = 'deepmind/small does not exist as a path, .* which is not installed: pip install'
    for read in (load, carries_arguments):
        with pytest.raises(Refused, match=message):
            read(NAME)
