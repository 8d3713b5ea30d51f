import copy
import functools
import json

import pytest

from configs import audioset
from configs.imagenet import get_config
from experiments import run_config
from perceiver_jax.errors import Refused


def test_a_config_comes_back_as_its_file_made_it(tmp_path):
    config = get_config('demo')
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    read = run_config.get_config(tmp_path)
    assert read.to_dict() == config.to_dict()
    read.augmentation.crop_area = (0.1, 1.0)  # null was saved
    assert read.augmentation.crop_area == (0.1, 1.0)


def test_the_config_of_an_old_run_is_in_the_words_of_today(tmp_path):
    saved = get_config('demo').to_dict()
    saved['model']['encoder']['num_self_attend_heads'] = 4
    del saved['model']['encoder']['self_attend']
    del saved['data']['classes'], saved['init_from']
    del saved['train']['freeze'], saved['optimizer']['loaded_scale']
    (tmp_path / 'config.json').write_text(json.dumps(saved))
    assert run_config.get_config(tmp_path).to_dict() == get_config('demo').to_dict()


def test_keys_that_came_later_are_added_where_their_section_is(tmp_path):
    for variant, later in (
        ('raw_audio', ['model.inputs.audio.hop', 'clip.loudness_db']),
        ('mel', ['clip.loudness_db']),
    ):
        config = audioset.get_config(variant).to_dict()
        saved = copy.deepcopy(config)
        for key in later:
            *sections, name = key.split('.')
            del functools.reduce(dict.__getitem__, sections, saved)[name]
        before = copy.deepcopy(saved)
        assert run_config.upgraded(saved) == config
        assert saved == before


def test_what_a_run_started_from_is_no_part_of_its_config(tmp_path):
    facts = {'weights': 'x', 'params_sha256': '5f1d'}
    saved = {**get_config('demo').to_dict(), 'started_from': facts}
    (tmp_path / 'config.json').write_text(json.dumps(saved))
    assert run_config.get_config(tmp_path).to_dict() == get_config('demo').to_dict()
    assert run_config.started_from(tmp_path) is None  # no checkpoint has what they gave
    (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
    assert run_config.started_from(tmp_path) == facts
    (tmp_path / 'config.json').write_text(json.dumps(saved | {'started_from': 3}))
    with pytest.raises(
        Refused, match="config.json: 'started_from' is 3, expected what a run wrote"
    ):
        run_config.started_from(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(get_config('demo').to_dict()))
    assert run_config.started_from(tmp_path) is None


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'there is no such file'),
        (b'{"task": "imag', 'Unterminated string'),
        (b'\xff\xfe', "can't decode byte 0xff"),
        (b'[1]', r'expected a JSON object, got \[1\]'),
        (b'{"task": "imagenet", "model": {}}', 'it lacks seed, parallel, data, optimizer, train,'),
    ],
)
def test_what_is_not_the_config_of_a_run_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'config.json').write_bytes(text)
    with pytest.raises(Refused, match=f'config.json is not the config of a run: .*{message}'):
        run_config.get_config(tmp_path)


def test_a_section_holds_keys(tmp_path):
    saved = get_config('demo').to_dict() | {'model': None}
    (tmp_path / 'config.json').write_text(json.dumps(saved))
    with pytest.raises(Refused, match='model is None'):
        run_config.get_config(tmp_path)
