"""Metrics of multi-label classification: measured class by class with scikit-learn, averaged."""

from collections.abc import Callable

import numpy as np

from perceiver_jax.errors import Refused

# What `multi_label_metrics` measures; some of it on some data alone.
METRICS = ('map', 'auc', 'd_prime', 'classes_left_out', 'accuracy')


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the area under each class's curve of precision over recall.

    Args:
      labels: Labels `[examples, K]`, 1 where the class is present, else 0.
      scores: Scores `[examples, K]`, higher where the class is more likely.

    Returns:
      Average precisions, float64 `[K]`; NaN for a class without a positive example.

    Raises:
      Refused: The shapes differ or a label is neither 0 nor 1.

    Source: Gemmeke et al., Audio Set, 2017; its mAP is the mean over the classes.
    """
    import sklearn.metrics  # slow, and needed to evaluate alone

    return _by_class(sklearn.metrics.average_precision_score, labels, scores, needs_negative=False)


def area_under_roc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the area under each class's ROC curve.

    It is the share of pairs of a positive and a negative example whose scores are in the right
    order.

    Args:
      labels: Labels `[examples, K]`, 1 where the class is present, else 0.
      scores: Scores `[examples, K]`, higher where the class is more likely.

    Returns:
      Areas, float64 `[K]`; NaN for a class without a positive or without a negative example.

    Raises:
      Refused: The shapes differ or a label is neither 0 nor 1.
    """
    import sklearn.metrics

    return _by_class(sklearn.metrics.roc_auc_score, labels, scores, needs_negative=True)


def d_prime(auc: float) -> float:
    """Returns the distance of two normal distributions that an area under the ROC curve implies.

    Args:
      auc: Area under the ROC curve, in 0..1. It is clipped to 1e-6..1 - 1e-6, since 1 would give
        infinity; the largest result is thus 6.7.

    Returns:
      The distance of their means in standard deviations.
    """
    import scipy.stats

    return float(np.sqrt(2) * scipy.stats.norm.ppf(np.clip(auc, 1e-6, 1 - 1e-6)))


def multi_label_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Returns means over the classes, and how many classes cannot be measured.

    Args:
      labels: Labels `[examples, K]`, 1 where the class is present, else 0.
      scores: Scores `[examples, K]`, higher where the class is more likely.

    Returns:
      'map' and 'auc' (means of average precision and of area under the ROC curve), 'd_prime' (of
      the mean area), 'classes_left_out' (the number of classes without a positive example) and, if
      every example has exactly one label, 'accuracy' (of the highest score).

    Raises:
      Refused: No class has a positive example, the shapes differ or a label is neither 0 nor 1.
    """
    precision, area = average_precision(labels, scores), area_under_roc(labels, scores)
    if np.isnan(precision).all():
        raise Refused(f'of {labels.shape[1]} classes none has a positive example')
    # Without a pair of a positive and a negative example there is no order: 0.5 is chance.
    auc = 0.5 if np.isnan(area).all() else float(np.nanmean(area))
    numbers = {
        'map': float(np.nanmean(precision)),
        'auc': auc,
        'd_prime': d_prime(auc),
        'classes_left_out': int(np.isnan(precision).sum()),
    }
    if (np.sum(labels, axis=1) == 1).all():
        numbers['accuracy'] = float(np.mean(scores.argmax(1) == labels.argmax(1)))
    return numbers


def _by_class(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    scores: np.ndarray,
    needs_negative: bool,
) -> np.ndarray:
    """Measures each class with enough examples; NaN for the others."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    # scikit-learn takes [examples, K]; the transpose would be measured without complaint.
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise Refused(f'labels {labels.shape} and scores {scores.shape} must be [examples, K]')
    if not np.isin(labels, (0, 1)).all():
        raise Refused('labels must be 0 or 1')
    positive = labels.any(axis=0)
    measurable = positive & ~labels.all(axis=0) if needs_negative else positive
    values = np.full(labels.shape[1], np.nan)
    for k in np.flatnonzero(measurable):
        values[k] = metric(labels[:, k], scores[:, k])
    return values
