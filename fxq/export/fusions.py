"""Which of ONNX Runtime's optimizations costs accuracy: the file is measured with one after the other left out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fxq.compare.parity import OutputParity
from fxq.compare.quality import Quality
from fxq.export.file_quality import measure_file
from fxq.export.open_shapes import OpenShapes
from fxq.export.options import ExportOptions
from fxq.export.parity import Reference
from fxq.export.written_file import WrittenFile
from fxq.runtimes import count_kinds, get_runtime

# What rounding may do to an SQNR.
LOST_DB = 0.3
# Optimizations that move an output by less on average do not change how good it is.
_MOVED_LSB = 0.02
# Those that may move numbers, by ONNX Runtime's names, the suspicious ones first: integer kernels, scales that are
# multiplied into others, weights that are quantized anew, and then what computes in another order.
OPTIMIZERS = (
    "QDQSelectorActionTransformer", "MatMulScaleFusion", "WeightBiasQuantization", "QDQS8ToU8Transformer",
    "Avx2WeightS8ToU8Transformer", "QDQPropagationTransformer", "DoubleQDQPairsRemover", "MatMulIntegerToFloatFusion",
    "DynamicQuantizeMatMulFusion", "DQMatMulNBitsFusion", "ConstantFolding", "ConvMulFusion", "ConvAddFusion",
    "ConvBNFusion", "DivMulFusion", "MatMulAddFusion", "MatmulTransposeFusion", "GemmSumFusion", "GemmActivationFusion",
    "ConvActivationFusion", "ConvAddActivationFusion", "MatMulActivationFusion", "GeluFusionL1", "GeluFusionL2",
    "FastGeluFusion", "BiasGeluFusion", "QuickGeluFusion", "LayerNormFusionL1", "LayerNormFusionL2",
    "SimplifiedLayerNormFusion", "AttentionFusion", "BiasSoftmaxFusion", "NchwcTransformer", "NhwcTransformer",
    "TransposeOptimizer",
)  # fmt: skip
# Of an optimization left out: what the file is worth; None for "as it is written", without any.
Measure = Callable[[Sequence[str] | None], Quality | None]


def judged(
    file: WrittenFile,
    reference: Reference,
    options: ExportOptions,
    shapes: OpenShapes,
    optimized: tuple[OutputParity, ...],
) -> dict[str, Any]:
    """Return how good the file is, and which optimization makes it worse, by the fields of the report.

    ``optimized``: how far they move it from the converted model.
    """
    floats = options.float_reference
    if floats is None:
        return {}

    def measure(without: Sequence[str] | None) -> Quality | None:
        return measure_file(file, reference.gm, reference.inputs, floats, shapes, without)

    found = measure(())
    if found is None:
        return {}
    if options.judge is not None:
        options.judge(found)
    is_moved = any(output.mean_lsb > _MOVED_LSB for output in optimized)
    return {"quality": found, "fusion": costly_fusion(file.path, found, measure) if is_moved else ""}


def costly_fusion(path: Path, optimized: Quality, measure: Measure) -> str:
    """Return, in words, which optimization makes an output worse than the file as it is written; "" where none does.

    Args:
        path: the file.
        optimized: what it is worth with ONNX Runtime's default optimizations.
        measure: what it is worth with these left out, or without any.
    """
    written = measure(None)
    loss = _loss(optimized, written)
    if loss is None or written is None:
        return ""
    before, after = (next(one.sqnr_db for one in all_.outputs if one.name == loss) for all_ in (written, optimized))
    guilty = next((name for name in OPTIMIZERS if _loss(measure((name,)), written) is None), None)
    cost = f"output {loss!r} has {after:.1f} dB against the float model with ONNX Runtime's optimizations, and "
    cost += f"{before:.1f} as the file is written: "
    if guilty is None:
        return f"{cost}no optimization alone explains it; graph_optimization_level = ORT_DISABLE_ALL leaves all out"
    made = count_kinds(get_runtime("onnxruntime").executed_ops(path))
    made.subtract(count_kinds(get_runtime("onnxruntime", without=(guilty,)).executed_ops(path)))
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.most_common() if count > 0)
    return (
        f"{cost}it is {guilty}{f', which makes {kinds}' if kinds else ''}; "
        f"InferenceSession(..., disabled_optimizers=[{guilty!r}]) leaves it out"
    )


def _loss(found: Quality | None, written: Quality | None) -> str | None:
    """Return the name of the output that is worse than as it is written by more than rounding, None where none is."""
    if found is None or written is None:
        return None
    for after, before in zip(found.outputs, written.outputs, strict=True):
        is_known = after.sqnr_db is not None and before.sqnr_db is not None
        if is_known and after.sqnr_db < before.sqnr_db - LOST_DB:  # type: ignore[operator]  # is_known
            return after.name
    return None
