"""Metrics of flow against a few lines of NumPy, and by hand."""

import jax
import numpy as np
import pytest

from experiments.flow import metrics as flow_metrics
from experiments.flow.metrics import end_point_error, summarise

measure = jax.jit(flow_metrics.measure)

RNG = np.random.default_rng(0)
SHAPE = (5, 7, 11)  # pairs, height, width
TRUTH = RNG.normal(0, 30, (*SHAPE, 2)).astype(np.float32)
FLOW = TRUTH + RNG.normal(0, 4, (*SHAPE, 2)).astype(np.float32)
VALID = RNG.random(SHAPE) < 0.7
MATCHED = VALID & (RNG.random(SHAPE) < 0.6)
DATA = np.array([0, 1, 0, 1, 1])


def metrics(flow=FLOW, matched=MATCHED, unmatched=VALID & ~MATCHED):
    sums = measure(flow, TRUTH, VALID, matched, unmatched)
    return summarise(sums, DATA, ('sintel_clean', 'kitti2015'))


def test_distances_by_hand():
    flow, truth = np.array([[3.0, 4.0], [1, 1]]), np.array([[0.0, 0.0], [1, 1]])
    np.testing.assert_allclose(end_point_error(flow, truth), [5, 0])
    np.testing.assert_allclose(end_point_error(flow, truth, 12.0), [13, 12])
    with pytest.raises(ValueError, match=r'flow \(2, 2\) and truth \(2,\) must both be'):
        end_point_error(flow, truth[0])


def test_sintel_is_averaged_over_all_pixels():
    error = np.sqrt(((FLOW - TRUTH) ** 2).sum(-1))[DATA == 0]
    valid, matched, speed = VALID[DATA == 0], MATCHED[DATA == 0], np.hypot(*TRUTH[DATA == 0].T).T
    got = metrics()
    assert got['epe_sintel_clean'] == pytest.approx(error[valid].mean(), rel=1e-5)
    assert got['epe_sintel_clean_matched'] == pytest.approx(error[matched].mean(), rel=1e-5)
    unmatched = error[valid & ~matched].mean()
    assert got['epe_sintel_clean_unmatched'] == pytest.approx(unmatched, rel=1e-5)
    ranges = {'s0_10': (0, 10), 's10_40': (10, 40), 's40': (40, np.inf)}
    for name, (low, high) in ranges.items():
        expected = error[valid & (speed >= low) & (speed < high)].mean()
        assert got[f'epe_sintel_clean_{name}'] == pytest.approx(expected, rel=1e-5)


def test_kitti_is_averaged_over_pairs_and_its_outliers_over_pixels():
    pairs = np.flatnonzero(DATA == 1)
    error = np.sqrt(((FLOW - TRUTH) ** 2).sum(-1))
    speed = np.sqrt((TRUTH**2).sum(-1))
    wrong = (error > 3) & (error / speed > 0.05)
    got = metrics()
    expected = np.mean([error[i][VALID[i]].mean() for i in pairs])
    assert got['epe_kitti2015'] == pytest.approx(expected, rel=1e-5)
    expected = np.mean(np.concatenate([wrong[i][VALID[i]] for i in pairs]))
    assert got['fl_kitti2015'] == pytest.approx(expected, rel=1e-6)
    expected = np.mean(np.concatenate([wrong[i][MATCHED[i]] for i in pairs]))
    assert got['fl_kitti2015_matched'] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    'error, length, outlier', [(3.1, 50, True), (2.9, 10, False), (3.1, 70, False), (4, 79, True)]
)
def test_an_outlier_is_off_by_3_pixels_and_5_percent(error, length, outlier):
    truth = np.array([[[[length, 0.0]]]])
    ones = np.ones((1, 1, 1), bool)
    sums = measure(truth + [0, error], truth, ones, ones, ~ones)
    assert sums['outliers_all'].tolist() == [outlier]


def test_the_truth_has_no_error_and_what_is_not_known_no_metric():
    nowhere = np.zeros(SHAPE, bool)
    got = metrics(TRUTH, nowhere, nowhere)
    assert not any(got.values())
    assert list(got)[:4] == ['epe_sintel_clean', 'epe_kitti2015', 'fl_sintel_clean', 'fl_kitti2015']
    assert not any('matched' in name for name in got)


def test_a_pair_without_truth_counts_for_nothing():
    valid = VALID.copy()
    valid[1] = False
    sums = measure(FLOW, TRUTH, valid, MATCHED & valid, valid & ~MATCHED)
    got = summarise(sums, DATA, ('sintel_clean', 'kitti2015'))
    error = np.sqrt(((FLOW - TRUTH) ** 2).sum(-1))
    expected = np.mean([error[i][valid[i]].mean() for i in (3, 4)])
    assert got['epe_kitti2015'] == pytest.approx(expected, rel=1e-5)
