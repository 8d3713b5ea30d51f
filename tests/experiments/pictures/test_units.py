"""Metrics as people read them."""

import pytest

from experiments.pictures import units


@pytest.mark.parametrize(
    'metric, value, text, difference',
    [
        ('top1', 0.7796, '78.0 %', '+78.0 points'),
        ('mAP', 0.4, '40.0 %', '+40.0 points'),
        ('epe_clean', 1.806, '1.81 px', '+1.81 px'),
        ('cross_entropy', 0.69314, '0.693', '+0.693'),
    ],
)
def test_metric_text(metric, value, text, difference):
    assert units.metric_text(metric, value) == text
    assert units.metric_text(metric, value, signed=True) == difference
    assert units.metric_text(metric, -value, signed=True) == f'-{difference[1:]}'


def test_a_difference_too_small_to_show_is_not_minus_zero():
    assert units.metric_text('top1', -0.0001, signed=True) == '+0.0 points'


def test_several_scores_are_their_mean_and_deviation():
    assert units.scores_text('top1', [0.5]) == '50.0 %'
    # The squares of -1, 0 and 1 sum up to 2; divided by 2 the root is 1.
    assert units.scores_text('top1', [0.5, 0.51, 0.52]) == '51.0 ± 1.0 %, 3 runs'
    assert units.scores_text('epe_clean', [1.0, 3.0]) == '2.00 ± 1.41 px, 2 runs'
    assert units.scores_text('loss', [1.0, 3.0]) == '2 ± 1.41, 2 runs'


@pytest.mark.parametrize(
    'seconds, text', [(59.4, '59 s'), (150, '2.5 min'), (9000, '2.5 h'), (864000, '10.0 days')]
)
def test_duration(seconds, text):
    assert units.duration_text(seconds) == text


@pytest.mark.parametrize(
    'count, text',
    [
        (None, 'more than there is'),
        (2_062_000, '1.97 MiB'),
        (9_224_437_760, '8.59 GiB'),
        (2**42, '4,096.00 GiB'),
    ],
)
def test_size(count, text):
    assert units.size_text(count) == text
