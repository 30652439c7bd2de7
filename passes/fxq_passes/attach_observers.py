"""Switch the inserted quantizers on, each with the calibrator that the recipe asks for."""

from dataclasses import dataclass

from torch.fx import Node

from fxq import Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import inserted_for, is_quantizer, kind
from fxq.nn import Quantized, WeightQuantized


@register_pass("attach_observers")
@dataclass(frozen=True)
class AttachObservers(Pass):
    """Give the inserted quantizers the recipe's calibrator and switch all quantizers on."""

    stage = Stage.PREPARED
    preserves_numbers = False

    def run(self, rw: Rewriter) -> None:
        """Leave quantizers placed by hand, and calibrators that a descriptor names itself, as they are."""
        for node in rw.nodes(is_quantizer):
            quantizer, plans = rw.module(node), inserted_for(node)
            if not plans or quantizer.is_enabled or not isinstance(quantizer, TensorQuantizer):
                continue
            _switch_on(rw, quantizer, is_weight=any(plan.role == "weight" for plan in plans))
            rw.edit(node, _observed(quantizer))
        by_passes = {entry.path for entry in rw.record.of("swap_modules", "edit")}
        for node in rw.nodes(lambda node: node.op == "call_module" and str(node.target) in by_passes):
            _switch_on_layer(rw, node, rw.module(node))


def _switch_on_layer(rw: Rewriter, node: Node, layer: Quantized) -> None:
    """Switch the quantizers of a swapped module on: what it reads, then its weights."""
    for name, quantizer in layer.activations():
        if not quantizer.is_enabled and (name not in layer.products or "matmul" in rw.target.quantize_inputs):
            _switch_on(rw, quantizer)
            rw.edit(node, f"{name}: {_observed(quantizer)}")
    weights = [quantizer for _, _, quantizer in layer.weights() if not quantizer.is_enabled]
    if weights and not _is_worth_it(rw, node, layer):
        rw.skip(node, "its input is not quantized, so its weight stays in float too")
        return
    for quantizer in weights:
        _switch_on(rw, quantizer, is_weight=True)
        rw.edit(node, "weight observed by its largest magnitude")


def _switch_on(rw: Rewriter, quantizer: TensorQuantizer, is_weight: bool = False) -> None:
    if quantizer.descriptor.calibrator == "max" and not is_weight:
        quantizer.use_calibrator(rw.settings.calibrator)
    quantizer.enable()


def _is_worth_it(rw: Rewriter, node: Node, layer: Quantized) -> bool:
    """Return whether an integer weight is of use: its input is quantized too, or need not be."""
    if not isinstance(layer, WeightQuantized) or not rw.target.quantizes_inputs(kind(node)):
        return True
    return layer.input_quantizer is not None or is_quantizer(node.all_input_nodes[0])


def _observed(quantizer: TensorQuantizer) -> str:
    if quantizer.calibrator is None:
        return "its range is " + ("measured as it runs" if quantizer.descriptor.is_dynamic else "fixed")
    return f"observed by {type(quantizer.calibrator).__name__}"
