"""Max fit: the exact lowest and highest value."""

from fxq.calib.histogram import Histogram
from fxq.quant.registry import register_fit


@register_fit("max")
def fit(histogram: Histogram) -> tuple[float, float]:
    """Return the lowest and highest value seen."""
    return histogram.low, histogram.high
