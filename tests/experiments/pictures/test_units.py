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
