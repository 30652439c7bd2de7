"""Plans of TensorRT for RTX: compiled from models, asked what computes in integers, and compared with others."""

from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.runtimes import ExecutedOp, get_runtime
from fxq.runtimes.tensorrt_rtx import weighted_ops

Plan = tuple[ExecutedOp, ...]
FLOATS = frozenset({"float32", "float16", "bfloat16"})
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def compiled(path: Path) -> Plan:
    """Return the kernels of a file, without those that wait for others."""
    return tuple(kernel for kernel in get_runtime("tensorrt_rtx").executed_ops(path) if kernel.outputs)


def quantized(model: nn.Module, x: Tensor, recipe: str | fxq.Recipe = "tensorrt") -> fx.GraphModule:
    """Return the converted model, calibrated on ``x``."""
    torch.manual_seed(0)
    batches = None if recipe == "tensorrt-int4" else [x]
    return fxq.quantize(model.eval(), batches, recipe, x, progress=False)


def plan_of(converted: fx.GraphModule, path: Path, dtype: torch.dtype | None = None) -> Plan:
    """Return the kernels of a converted model, written to ``path`` with a float side of ``dtype``."""
    # What the file computes is checked elsewhere, and takes longer than to compile it.
    fxq.export_onnx(converted, path, dynamic_batch=False, float_dtype=dtype, check=False)
    return compiled(path)


def dtypes_read(plan: Plan) -> set[str]:
    """Return what the kernels of convolutions and matrix products read."""
    return {dtype for kernel in weighted_ops(plan) for dtype in kernel.input_dtypes}


def products_in_float(path: Path, plan: Plan) -> list[str]:
    """Return the convolutions and matrix products of a file, two activations' too, that no kernel computes in int8."""
    products = [node.name for node in onnx.load(path).graph.node if node.op_type in _PRODUCTS]
    return [name for name in products if not _is_in_int8(name, plan)]


def quantizers(path: Path) -> set[str]:
    """Return the names of a file's activation quantizers."""
    return {str(node.name) for node in ir.load(path).graph if node.op_type == "QuantizeLinear"}


def quantizers_in_front(path: Path, op_type: str) -> set[str]:
    """Return the names of the quantizers whose codes nodes of this operator read."""
    nodes = [node for node in ir.load(path).graph if node.op_type == op_type]
    found = [_quantizer(value) for node in nodes for value in node.inputs]
    return {str(one.name) for one in found if one is not None}


def operands_in_float(path: Path, op_type: str) -> Path:
    """Write the file anew, where all nodes of this operator read what was quantized, not the codes; return its path."""
    model = ir.load(path)
    for node in model.graph:
        for index, value in enumerate(node.inputs if node.op_type == op_type else ()):
            quantizer = _quantizer(value)
            if quantizer is not None:
                node.replace_input_with(index, quantizer.inputs[0])
    for node in reversed(list(model.graph)):
        if node.op_type in _QUANTIZERS and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    found = path.with_name(f"{path.stem}_{op_type}.onnx")
    ir.save(model, found)
    return found


def _is_in_int8(name: str, plan: Plan) -> bool:
    kernels = [kernel for kernel in plan if name in kernel.fused and kernel.inputs]
    # The kernel behind a product has its name too; attention may be one kernel as a whole.
    return any(set(kernel.input_dtypes) == {"int8"} for kernel in weighted_ops(kernels) or kernels)


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the QuantizeLinear that a value was dequantized from, None for others and stored tensors."""
    dequantizer = value.producer() if value is not None else None
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear" or dequantizer.inputs[0] is None:
        return None
    return dequantizer.inputs[0].producer()
