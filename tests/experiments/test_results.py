"""What a finished run leaves, and what is refused."""

import json

import pytest

from experiments import results

RESULT = {
    'task': 'imagenet',
    'config': 'configs/imagenet.py:fourier',
    'data': 'imagenet2012',
    'metric': 'top1',
    'value': 0.7712,
    'paper_value': 0.78,
    'steps': 150139,
    'examples': 153742336,
    'parameters': 44900000,
    'params_sha256': '5f1d',
    'wall_seconds': 190000.0,
    'device': 'TPU v4 x32',
    'git_commit': '0a1b2c3',
}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('more', [{}, {'seed': 0, 'date': '2026-11-26T20:10:27+00:00'}])
def test_results_of_today_and_before_are_read(tmp_path, more):
    assert results.load_result(write(tmp_path / 'x.json', RESULT | more)) == RESULT | more


@pytest.mark.parametrize(
    'change, message',
    [
        ({'steps': '12'}, "'steps' is '12', expected int"),
        ({'value': None}, "'value' is None, expected int | float"),
        ({'value': float('nan')}, "'value' is nan, expected a fraction in 0..1"),
        ({'value': 77.1}, "'value' is 77.1, expected a fraction in 0..1"),
        ({'paper_value': 78.0}, "'paper_value' is 78.0, expected a fraction in 0..1"),
        ({'metric': 'epe', 'value': float('inf')}, "'value' is inf, expected a finite number"),
        ({'seed': '1'}, "'seed' is '1', expected int"),
        ({'date': 20261126}, "'date' is 20261126, expected str"),
        ({'notes': 'x'}, "unknown key 'notes'"),
    ],
)
def test_a_malformed_result_names_its_file_and_key(tmp_path, change, message):
    with pytest.raises(ValueError) as error:
        results.load_result(write(tmp_path / 'x.json', RESULT | change))
    assert str(error.value) == f'{tmp_path / "x.json"}: {message}'


@pytest.mark.parametrize(
    'content, message',
    [(b'{', 'not JSON'), (b'[1]', 'expected a JSON object'), (b'"\xff"', 'not JSON: .* byte 0xff')],
)
def test_what_is_no_json_object_is_refused(tmp_path, content, message):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'x.json: {message}'):
        results.load_result(path)
