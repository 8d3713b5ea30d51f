import math

import numpy as np
import pytest

from experiments.audioset.metrics import (
    area_under_roc,
    average_precision,
    d_prime,
    multi_label_metrics,
)

LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
SCORES = np.array(
    [[0.9, 0.1, 0.3], [0.8, 0.7, 0.1], [0.4, 0.6, 0.2], [0.1, 0.65, 0.5], [0.2, 0.9, 0]]
)


def test_average_precision_by_hand():
    # Class 0, by falling score: right, wrong, right, ...: precision 1 at recall 1/2, 2/3 at 1.
    # Class 1: 0.9 right, 0.7 right, 0.65 wrong, 0.6 right: 1 and 1, then 3/4.
    expected = [(1 + 2 / 3) / 2, (1 + 1 + 3 / 4) / 3, np.nan]
    np.testing.assert_allclose(average_precision(LABELS, SCORES), expected)


def test_area_under_roc_by_hand():
    # Class 0: of 2 x 3 pairs one is in the wrong order (0.4 below 0.8). Class 1: 0.6 below 0.65.
    np.testing.assert_allclose(area_under_roc(LABELS, SCORES), [5 / 6, 5 / 6, np.nan])


def test_the_summary_leaves_out_classes_without_positives():
    numbers = multi_label_metrics(LABELS, SCORES)
    assert numbers['map'] == pytest.approx((5 / 6 + 11 / 12) / 2)
    assert numbers['auc'] == pytest.approx(5 / 6)
    assert numbers['d_prime'] == pytest.approx(1.3681, abs=1e-4)  # sqrt(2) * 0.96742
    assert numbers['classes_left_out'] == 1
    assert 'accuracy' not in numbers


def test_accuracy_where_every_example_has_one_label():
    labels = np.eye(3)[[0, 1, 2, 2]]
    scores = np.array([[0.9, 0, 0], [0, 0.2, 0.1], [0.5, 0.1, 0.4], [0, 0, 1]])
    assert multi_label_metrics(labels, scores)['accuracy'] == 0.75


def test_d_prime():
    assert d_prime(0.5) == 0
    # Two normal distributions one deviation apart: the difference of a pair has mean 1, variance 2.
    area = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    assert d_prime(area) == pytest.approx(1)
    assert d_prime(1.0) == pytest.approx(6.722, abs=1e-3)


def test_the_transpose_and_soft_labels_are_refused():
    with pytest.raises(ValueError, match=r'labels \(5, 3\) and scores \(3, 5\) must be'):
        average_precision(LABELS, SCORES.T)
    with pytest.raises(ValueError, match='must be 0 or 1'):
        average_precision(0.5 * LABELS, SCORES)
    with pytest.raises(ValueError, match='of 3 classes none has a positive'):
        multi_label_metrics(0 * LABELS, SCORES)
