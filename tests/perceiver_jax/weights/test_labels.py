import jax
import numpy as np
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.weights.labels import matching, parameter_labels

NAMES = [
    'encoder:latents',
    'encoder/cross_attend_1/attention/query:w',
    'encoder/cross_attend_1/attention/query:b',
    'encoder/cross_attend_10/mlp/hidden:w',
    'encoder/block_1/self_attend_2/mlp/hidden:w',
    'decoder/output:w',
    'decoder/output:b',
]


@pytest.mark.parametrize(
    'patterns, chosen',
    [
        ([], []),
        (['encoder'], [0, 1, 2, 3, 4]),
        (['encoder/*'], [1, 2, 3, 4]),
        (['encoder/cross_attend_1'], [1, 2]),
        (['encoder/cross_attend_*'], [1, 2, 3]),
        (['encoder/*/mlp'], [3, 4]),
        (['*:b'], [2, 6]),
        (['encoder:latents', 'decoder/output:w'], [0, 5]),
        (['decoder/output'], [5, 6]),
        (['encoder/cross_attend_[1]'], [1, 2]),
        (['*'], range(7)),
    ],
)
def test_patterns_choose_modules_and_parameters(patterns, chosen):
    assert matching(patterns, NAMES) == {NAMES[i] for i in chosen}


@pytest.mark.parametrize(
    'pattern, message',
    [
        ('encoder/cros_attend_1', "'encoder/cros_attend_1' matches .* mean encoder/cross_attend_1"),
        ('Decoder', 'Did you mean .*decoder'),
        ('head', 'There are decoder, encoder, and what is below them'),
        ('', 'matches no parameter'),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, message):
    with pytest.raises(Refused, match=message):
        matching(['encoder', pattern], NAMES)


def test_one_text_is_no_collection_of_patterns():
    with pytest.raises(
        Refused, match=r"patterns are a list of texts, not one: write \['encoder'\]"
    ):
        matching('encoder', NAMES)


def test_the_first_pattern_that_matches_labels():
    params = {
        'encoder/mlp': {'w': np.zeros(3), 'b': np.zeros(2)},
        'decoder': {'w': np.zeros(1), 'b': np.zeros(1)},
    }
    patterns = {'encoder/mlp:w': 'slow', 'encoder': 'frozen', '*:w': 'never the encoder'}
    labels = parameter_labels(params, patterns, 'rest')
    assert labels == {
        'encoder/mlp': {'w': 'slow', 'b': 'frozen'},
        'decoder': {'w': 'never the encoder', 'b': 'rest'},
    }
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    with pytest.raises(Refused, match='encodr'):
        parameter_labels(params, {'encodr': 'frozen'}, 'rest')
