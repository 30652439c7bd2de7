"""Ranges become constants: what was calibrated or learned is what the file will say. Training is over."""

from dataclasses import dataclass

from fxq import LSB, CalibrationError, Pass, Rewriter, Stage, TargetError, TensorQuantizer, register_pass
from fxq.graph import fit_weights, is_quantizer, kind
from fxq_passes.folding.computed_weights import fold_computed

_MOST_SHOWN = 8


@register_pass("freeze_ranges")
@dataclass(frozen=True)
class FreezeRanges(Pass):
    """Fix the ranges of all quantizers, or name those that were never calibrated; dropout and computed weights kept
    for training leave.

    A dynamic quantizer has no range to fix.
    """

    stage = Stage.FROZEN
    tolerance = LSB(1)  # two quantizers in a row, with dropout between them in training, become one

    def run(self, rw: Rewriter) -> None:
        """Fit weights that have no range yet (they are known), then require one of everybody."""
        fold_computed(rw)
        fit_weights(rw.gm, only_missing=True)
        quantizers = {path: found for path, found in rw.gm.named_modules() if isinstance(found, TensorQuantizer)}
        on = {path: found for path, found in quantizers.items() if found.is_enabled}
        dynamic = [path for path, found in on.items() if found.descriptor.is_dynamic]
        if dynamic and not rw.target.is_dynamic:
            raise TargetError(
                f"{len(dynamic)} quantizers measure their range as they run, which target {rw.target.name!r} cannot: "
                f"{', '.join(dynamic[:_MOST_SHOWN])}. Give them another calibrator, or use the recipe 'dynamic'"
            )
        missing = [path for path, found in on.items() if not (found.has_range or found.descriptor.is_dynamic)]
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
