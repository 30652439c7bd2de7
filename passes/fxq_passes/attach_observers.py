"""Switch the inserted quantizers on, each with the calibrator that the recipe asks for."""

from dataclasses import dataclass

from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import inserted_for, is_quantizer, planned_inside
from fxq.nn import Quantized


@register_pass("attach_observers")
@dataclass(frozen=True)
class AttachObservers(Pass):
    """Give the inserted quantizers the recipe's calibrator and switch all quantizers on."""

    stage = Stage.PREPARED
    tolerance = ANY

    def run(self, rw: Rewriter) -> None:
        """Leave quantizers placed by hand, and calibrators that a descriptor names itself, as they are."""
        for node in rw.nodes(is_quantizer):
            quantizer, plans = rw.module(node), inserted_for(node)
            if not plans or quantizer.is_enabled or not isinstance(quantizer, TensorQuantizer):
                continue
            _switch_on(rw, quantizer, is_weight=any(plan.role == "weight" for plan in plans))
            rw.edit(node, _observed(quantizer))
        for node in rw.nodes(lambda node: bool(planned_inside(node))):
            if isinstance(rw.module(node), Quantized):  # else nothing was swapped, and the stage's rules say so
                _switch_on_inside(rw, node, rw.module(node))


def _switch_on_inside(rw: Rewriter, node: Node, layer: Quantized) -> None:
    for slot, plan in planned_inside(node).items():
        quantizer = layer.quantizer_of(slot)
        if quantizer is not None and not quantizer.is_enabled:
            is_weight = plan.role == "weight"
            _switch_on(rw, quantizer, is_weight)
            rw.edit(node, f"{slot}: {'observed by its largest magnitude' if is_weight else _observed(quantizer)}")


def _switch_on(rw: Rewriter, quantizer: TensorQuantizer, is_weight: bool = False) -> None:
    if quantizer.descriptor.calibrator == "max" and not is_weight:
        quantizer.use_calibrator(rw.settings.calibrator)
    quantizer.enable()
    # In training a weight leaves the range that it had. An activation keeps what data was asked for, unless that is an
    # average, which goes on.
    if rw.qat and (is_weight or quantizer.descriptor.calibrator == "moving_average"):
        quantizer.enable_tracking()


def _observed(quantizer: TensorQuantizer) -> str:
    if quantizer.calibrator is None:
        return "its range is " + ("measured as it runs" if quantizer.descriptor.is_dynamic else "fixed")
    return f"observed by {type(quantizer.calibrator).__name__}"
