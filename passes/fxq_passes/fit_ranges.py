"""Ranges follow from what was observed, those of weights from the weights."""

from dataclasses import dataclass

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import fit_observed, fit_weights, observing_quantizers


@register_pass("fit_ranges")
@dataclass(frozen=True)
class FitRanges(Pass):
    """Fit the range of each activation by its calibrator's method, and the ranges of the weights."""

    stage = Stage.CALIBRATED
    tolerance = ANY
    streams = True

    def run(self, rw: Rewriter) -> None:
        """Fit all activation ranges or none, then the weights."""
        observers = observing_quantizers(rw.gm)
        if observers:
            fit_observed(observers, {}, rw.data.progress)
        fit_weights(rw.gm)
