"""The report on a quantized model: one page that opens from disk, or the same data as JSON."""

from fxq.reporting.content import Report, check_place
from fxq.reporting.making import report

__all__ = ["Report", "check_place", "report"]
