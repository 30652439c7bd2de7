"""Switch the inserted quantizers on, each with the calibrator that the recipe asks for."""

from dataclasses import dataclass

from torch.fx import Node

from fxq import Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import inserted_for, is_quantizer, is_weighted


@register_pass("attach_observers")
@dataclass(frozen=True)
class AttachObservers(Pass):
    """Give the inserted quantizers the recipe's calibrator and switch all quantizers on."""

    stage = Stage.PREPARED
    preserves_numbers = False

    def run(self, rw: Rewriter) -> None:
        """Leave quantizers placed by hand, and calibrators that a descriptor names itself, as they are."""
        for node in rw.nodes(is_quantizer):
            quantizer = rw.module(node)
            if not inserted_for(node) or quantizer.is_enabled or not isinstance(quantizer, TensorQuantizer):
                continue
            if quantizer.descriptor.calibrator == "max":
                quantizer.use_calibrator(rw.settings.calibrator)
            quantizer.enable()
            rw.edit(node, f"observed by {type(quantizer.calibrator).__name__}")
        for node in rw.nodes(is_weighted):
            quantizer = getattr(rw.module(node), "weight_quantizer", None)
            if not isinstance(quantizer, TensorQuantizer) or quantizer.is_enabled:
                continue
            if not _has_quantized_input(rw, node):
                rw.skip(node, "its input is not quantized, so its weight stays in float too")
            else:
                quantizer.enable()
                rw.edit(node, "weight observed by its largest magnitude")


def _has_quantized_input(rw: Rewriter, node: Node) -> bool:
    return rw.module(node).input_quantizer is not None or is_quantizer(node.all_input_nodes[0])
