"""How metrics, times and sizes are written for people: what is a percentage, what is in pixels."""

import statistics
from collections.abc import Sequence

PERCENT_METRICS = ('top1', 'top5', 'accuracy', 'map', 'fl')  # fractions, shown as percentages
PIXEL_METRICS = ('epe',)  # end-point errors; also 'epe_clean' and the like


def metric_text(metric: str, value: float, signed: bool = False) -> str:
    """Returns a metric as people read it: '78.0 %', '1.81 px', '0.693'; signed: '-0.4 points'.

    Args:
      metric: Name of the metric; what precedes the first '_' decides its unit. `PERCENT_METRICS`
        are fractions, `PIXEL_METRICS` are in pixels.
      value: The number, as `result.json` holds it.
      signed: Whether the value is a difference of two values; it is written with its sign.

    Returns:
      The number with its unit.
    """
    sign = '+z' if signed else ''
    kind = metric.split('_')[0].lower()
    if kind in PERCENT_METRICS:
        return f'{100 * value:{sign}.1f} {"points" if signed else "%"}'
    if kind in PIXEL_METRICS:
        return f'{value:{sign}.2f} px'
    return f'{value:{sign}.3g}'


def scores_text(metric: str, values: Sequence[float]) -> str:
    """Returns the metric of a run, or of several: '88.5 %', or '88.5 ± 0.3 %, 3 runs'.

    Args:
      metric: Name of the metric.
      values: The metric of each run, at least one.

    Returns:
      The mean, and behind ± the sample standard deviation.
    """
    text = metric_text(metric, statistics.fmean(values))
    if len(values) == 1:
        return text
    number, _, unit = text.partition(' ')
    deviation = metric_text(metric, statistics.stdev(values)).partition(' ')[0]
    return f'{number} ± {deviation} {unit}'.rstrip() + f', {len(values)} runs'


def duration_text(seconds: float) -> str:
    """Returns a time as people read it: '59 s', '2.5 min', '3.0 h', '2.2 days'.

    Args:
      seconds: The time.
    """
    for unit, size in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def unit_of(metric: str) -> str:
    """Returns the unit of a metric: '%', 'px' or ''.

    Args:
      metric: Name of the metric.
    """
    return metric_text(metric, 0.0).partition(' ')[2]


def size_text(count: float | None) -> str:
    """Writes a number of bytes: 9_224_437_760 -> '8.59 GiB', 2_062_000 -> '1.97 MiB'."""
    if count is None:
        return 'more than there is'
    return f'{count / 2**30:,.2f} GiB' if count >= 2**30 else f'{count / 2**20:,.2f} MiB'
