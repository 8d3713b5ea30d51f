"""Metrics as people read them."""

PERCENT_METRICS = ('top1', 'top5', 'accuracy', 'map', 'fl')  # fractions, shown as percentages
PIXEL_METRICS = ('epe',)  # end-point errors; also 'epe_clean' and the like


def metric_text(metric: str, value: float, signed: bool = False) -> str:
    """A metric as people read it: '78.0 %', '1.81 px', '0.693'; a difference: '-0.4 points'.

    Args:
      metric: its name; `PERCENT_METRICS` are fractions, `PIXEL_METRICS` are in pixels.
      value: the number, as `result.json` holds it.
      signed: it is a difference of two values; written with its sign.
    """
    sign = '+z' if signed else ''
    kind = metric.split('_')[0].lower()
    if kind in PERCENT_METRICS:
        return f'{100 * value:{sign}.1f} {"points" if signed else "%"}'
    if kind in PIXEL_METRICS:
        return f'{value:{sign}.2f} px'
    return f'{value:{sign}.3g}'
