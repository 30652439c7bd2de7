"""Is the file as good as the module? Where it is not: which of ONNX Runtime's optimizations is why.

The file is measured with one after the other left out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fxq.compare.quality import Quality
from fxq.export.file_quality import measure_file, measure_module
from fxq.export.open_shapes import OpenShapes
from fxq.export.options import ExportOptions
from fxq.export.parity import Reference
from fxq.export.written_file import WrittenFile
from fxq.runtimes import count_kinds, get_runtime

# What rounding may do to an SQNR.
LOST_DB = 0.3
_AS_GOOD_AS_EXACT_DB = 60.0
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
    file: WrittenFile, reference: Reference, options: ExportOptions, shapes: OpenShapes, is_changed: bool
) -> dict[str, Any]:
    """Return how good the file is, and why it is worse than the module if it is, by the fields of the report.

    ``is_changed``: its float side is another than the module's, which is no optimization's doing.
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
    module = None if is_changed else measure_module(reference.gm, reference.inputs, floats, shapes)
    return {"quality": found, "fusion": why_worse(file.path, found, module, measure)}


def why_worse(path: Path, optimized: Quality, module: Quality | None, measure: Measure) -> str:
    """Return, in words, which optimization makes an output worse than the module's; "" where none is.

    Args:
        path: the file.
        optimized: what it is worth with ONNX Runtime's default optimizations.
        module: what the converted model is worth on the same samples.
        measure: what the file is worth with these optimizations left out, or without any.
    """
    name = None if module is None else _worst(optimized, module)
    written = None if name is None else measure(None)
    if name is None or module is None or written is None:
        return ""
    after, wanted, before = (_sqnr_db(one, name) for one in (optimized, module, written))
    what = f"output {name!r} has {after:.1f} dB against the float model with ONNX Runtime's optimizations, "
    if _loss_db(optimized, written, name) <= LOST_DB:
        return (
            f"{what}{before:.1f} as the file is written and {wanted:.1f} in the converted model: the runtime adds in "
            "another order, and the model amplifies what is rounded; no optimization is why"
        )
    what += f"and {before:.1f} as the file is written: "
    guilty = next((one for one in OPTIMIZERS if _loss_db(measure((one,)), written, name) <= LOST_DB), None)
    if guilty is None:
        return f"{what}no optimization alone explains it; graph_optimization_level = ORT_DISABLE_ALL leaves all out"
    made = count_kinds(get_runtime("onnxruntime").executed_ops(path))
    made.subtract(count_kinds(get_runtime("onnxruntime", without=(guilty,)).executed_ops(path)))
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.most_common() if count > 0)
    return (
        f"{what}it is {guilty}{f', which makes {kinds}' if kinds else ''}; "
        f"InferenceSession(..., disabled_optimizers=[{guilty!r}]) leaves it out"
    )


def _sqnr_db(quality: Quality, name: str) -> float | None:
    return next(one.sqnr_db for one in quality.outputs if one.name == name)


def _worst(found: Quality, wanted: Quality) -> str | None:
    """Return the name of the output that loses most, None where none loses more than rounding makes it."""
    losses = {one.name: _loss_db(found, wanted, one.name) for one in found.outputs}
    name = max(losses, key=losses.__getitem__, default=None)
    return name if name is not None and losses[name] > LOST_DB else None


def _loss_db(found: Quality | None, wanted: Quality, name: str) -> float:
    """Return how much worse an output is than it might be; beyond 60 dB both are as good as exact."""
    values = [None if one is None else _sqnr_db(one, name) for one in (wanted, found)]
    before, after = (None if value is None else min(value, _AS_GOOD_AS_EXACT_DB) for value in values)
    return 0.0 if before is None or after is None else round(before - after, 3)
