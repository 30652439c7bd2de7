"""LoweredOp: one row for each operator of a lowered graph. Whoever asks about one reads its row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoweredOp:
    """An operator of a lowered graph, and all that the rest of fxq needs to know about it.

    Args:
        function: the custom operator, ``torch.ops.fxq.<name>.default``.
        kind: "quantize", "dequantize" (argument 0 is the codes, argument 1 the scale, the last one a dtype), "dynamic"
            (integers, with ranges found as it runs; argument 1 is its weight if it has one), "integer" (of an integer
            model: reads and makes integers alone) or "float".
        translation: given an onnxscript Opset, returns the function that writes the operator in ONNX. It imports what
            it needs when it is called: the ONNX libraries take as long to import as torch.
        stored: the arguments that must be stored tensors: codes of weights and their steps.
        is_exact: it computes the same bits everywhere, since it adds nothing up.
        opset: the lowest ONNX opset that has it, whatever the dtypes.
        writes: the ONNX operators it becomes that quantize or dequantize, which an export step must not fold or copy.
    """

    function: Callable[..., Any]
    kind: str
    translation: Callable[[Any], Callable[..., Any]]
    stored: tuple[int, ...] = ()
    is_exact: bool = False
    opset: int = 18
    writes: tuple[str, ...] = ()
