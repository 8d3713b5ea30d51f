"""What a finished run leaves, and what is refused."""

import pytest

from experiments import results
from perceiver_jax.errors import Refused
from tests.toys.results import EVALUATION, RESULT, write


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


def test_an_evaluation_of_weights_is_a_result_without_steps(tmp_path):
    assert results.load_result(write(tmp_path / 'x.json', EVALUATION)) == EVALUATION
    for change, message in (
        ({'steps': 3}, "unknown key 'steps'"),
        ({'weights': 3}, "'weights' is 3, expected str"),
        ({'metrics': None}, "'metrics' is None, expected dict"),
        ({'value': 77.1}, "'value' is 77.1, expected a fraction in 0..1"),
    ):
        with pytest.raises(Refused) as refused:
            results.load_result(write(tmp_path / 'x.json', EVALUATION | change))
        assert str(refused.value) == f'{tmp_path / "x.json"}: {message}'


def test_the_evaluation_of_a_checkpoint_is_no_result(tmp_path):
    about = {'checkpoint': 'last', 'step': 6, 'metric': 'top1', 'value': 0.5}
    with pytest.raises(Refused, match="x.json is of a run's checkpoint: .* result.json is its"):
        results.load_result(write(tmp_path / 'x.json', about))


@pytest.mark.parametrize(
    'content, message',
    [(b'{', 'not JSON'), (b'[1]', 'expected a JSON object'), (b'"\xff"', 'not JSON: .* byte 0xff')],
)
def test_what_is_no_json_object_is_refused(tmp_path, content, message):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'x.json: {message}'):
        results.load_result(path)
