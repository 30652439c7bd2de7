"""Ranges become constants: what was calibrated or learned is what the file will say. Training is over."""

from dataclasses import dataclass

from fxq import CalibrationError, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_quantizer, kind
from fxq.nn import WeightQuantized

_MOST_SHOWN = 8


@register_pass("freeze_ranges")
@dataclass(frozen=True)
class FreezeRanges(Pass):
    """Fix the ranges of all quantizers, or name those that were never calibrated; dropout kept for training leaves."""

    stage = Stage.FROZEN

    def run(self, rw: Rewriter) -> None:
        """Fit weights that have no range yet (they are known), then require one of everybody."""
        for module in rw.gm.modules():
            if isinstance(module, WeightQuantized) and not module.weight_quantizer.has_range:
                module.fit_weight()
        quantizers = {path: found for path, found in rw.gm.named_modules() if isinstance(found, TensorQuantizer)}
        missing = [path for path, found in quantizers.items() if found.is_enabled and not found.has_range]
        if missing:
            more = f" and {len(missing) - _MOST_SHOWN} more" if len(missing) > _MOST_SHOWN else ""
            raise CalibrationError(
                f"{len(missing)} quantizers have no range: {', '.join(missing[:_MOST_SHOWN])}{more}. "
                "Run fxq.calibrate(prepared, batches) with data that reaches them before fxq.convert, "
                "or switch them off with .disable()"
            )
        for node in rw.nodes(lambda node: node.op == "call_module"):
            quantizer = rw.module(node)
            if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled:
                quantizer.disable_calib()
        for node in rw.nodes(lambda node: node.op == "call_module" and kind(node) == "dropout"):
            rw.bypass(node, "dropout was kept for training, which is over")
        for node in rw.nodes(is_quantizer):
            if is_quantizer(node.all_input_nodes[0]):
                rw.bypass(node, "the dropout between it and another quantizer is gone")
