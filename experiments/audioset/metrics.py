"""Metrics of multi-label classification, class by class, by scikit-learn."""

import numpy as np

from perceiver_jax.errors import Refused


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The area under each class's precision over its recall.

    Args:
      labels: [examples, K], 1 where the class is present, else 0.
      scores: [examples, K], higher where it is likelier.

    Returns:
      [K] float64; NaN for a class without a positive example.

    Raises:
      ValueError: if the shapes differ or labels are neither 0 nor 1.

    Source: AudioSet's mAP is the mean over the classes (Gemmeke et al., 2017).
    """
    import sklearn.metrics  # slow, and needed to evaluate alone

    return _by_class(sklearn.metrics.average_precision_score, labels, scores, needs_negative=False)


def area_under_roc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of pairs of a positive and a negative example that are in the right order.

    Args:
      labels: [examples, K], 1 where the class is present, else 0.
      scores: [examples, K], higher where it is likelier.

    Returns:
      [K] float64; NaN for a class without a positive or without a negative example.

    Raises:
      ValueError: if the shapes differ or labels are neither 0 nor 1.
    """
    import sklearn.metrics

    return _by_class(sklearn.metrics.roc_auc_score, labels, scores, needs_negative=True)


def d_prime(auc: float) -> float:
    """How many deviations two normal distributions lie apart whose area under the ROC is `auc`.

    An area of 1 would be infinite: it counts as 1 - 1e-6, which is 6.7.
    """
    import scipy.stats

    return float(np.sqrt(2) * scipy.stats.norm.ppf(np.clip(auc, 1e-6, 1 - 1e-6)))


def multi_label_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means over the classes, and how many of them cannot be measured.

    Args:
      labels: [examples, K], 1 where the class is present, else 0.
      scores: [examples, K], higher where it is likelier.

    Returns:
      'map', 'auc', 'd_prime' of the mean 'auc', 'classes_left_out' (those without positives); and
      'accuracy', that of the highest score, where every example has one label.

    Raises:
      ValueError: if no class has a positive example, or the arrays are not as said.
    """
    precision, area = average_precision(labels, scores), area_under_roc(labels, scores)
    if np.isnan(precision).all():
        raise Refused(f'of {labels.shape[1]} classes none has a positive example')
    # Where a class is present everywhere, there is nothing to tell apart: that is chance.
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


def _by_class(metric, labels, scores, needs_negative) -> np.ndarray:
    labels, scores = np.asarray(labels), np.asarray(scores)
    # scikit-learn takes [examples, K]; the transpose would be measured without a complaint.
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
