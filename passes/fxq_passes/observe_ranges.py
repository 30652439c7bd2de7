"""Data flows through the float model, and observers look."""

from dataclasses import dataclass

from fxq import ANY, Pass, Rewriter, Stage, register_pass
from fxq.graph import forget, observing, observing_quantizers, share_observations


@register_pass("observe_ranges")
@dataclass(frozen=True)
class ObserveRanges(Pass):
    """Show all batches to the observers, in the float model, in one reading and constant memory."""

    stage = Stage.CALIBRATED
    tolerance = ANY
    streams = True

    def run(self, rw: Rewriter) -> None:
        """Start anew; where no quantizer waits for data, none is read."""
        observers = observing_quantizers(rw.gm)
        if not observers:
            return
        forget(observers)
        with observing(rw.gm, observers):
            rw.data.feed(rw.gm, "Calibrating")
        share_observations(rw.gm, observers, rw.data)
