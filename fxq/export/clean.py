"""The graph passes of an export: only what never touches the quantization.

torch.onnx's own optimizer is not used. It folds ``DequantizeLinear`` of a small weight back into a float weight, and
merges equal initializers and nodes, which loses their names and the one-to-one count of quantizers.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from fxq.export.stored_weights import fold_into_codes


def clean(model: ir.Model) -> None:
    """Inline functions, fold constants (never Q/DQ), drop what is unused; ``model`` is modified."""
    common.InlinePass()(model)
    fold_into_codes(model.graph)
    _make_reshapes_constant(model.graph)
    with np.errstate(all="ignore"):  # log(0) behind a mask, as in T5's distances, is the model's own
        fold_constants(model, onnx_shape_inference=True, should_fold=_should_fold)
        if _fold_gather_elements(model.graph):
            fold_constants(model, onnx_shape_inference=True, should_fold=_should_fold)
    _use_global_average_pool(model.graph)
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # onnx_ir's constructor
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.OutputFixPass(),
    )(model)
    for node in model.graph:
        # onnxscript writes default attributes; axis means nothing for a scalar scale and misleads readers.
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if _is_scalar(node.inputs[1]):
                node.attributes.pop("axis", None)
            if node.attributes.get_int("block_size", 0) == 0:
                node.attributes.pop("block_size", None)


def _should_fold(node: ir.Node) -> bool | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "GatherElements"):
        return False
    if node.op_type == "Cast" and (source := node.inputs[0]) is not None and source.const_value is not None:
        return True  # a scale or zero point stored in another dtype, however many channels it has
    return None


def _fold_gather_elements(graph: ir.Graph) -> bool:
    """Compute those of constants, such as the token types that BERT has by default; return whether there was one.

    onnx's reference evaluation, which folds the rest, fails on more than 64 rows, or computes something else.
    """
    found = False
    for node in list(graph):
        if node.op_type != "GatherElements":
            continue
        data, indices = (ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None)
        if data is None or indices is None:
            continue
        values, at, axis = data.numpy(), indices.numpy(), node.attributes.get_int("axis", 0)
        place: list[np.ndarray] = list(np.indices(at.shape))
        place[axis] = at  # negative ones count from the end, as in ONNX
        tensor = ir.tensor(values[tuple(place)], dtype=data.dtype)
        constant = ir.node("Constant", [], attributes={"value": tensor})
        ir.convenience.replace_nodes_and_values(graph, node, [node], [constant], node.outputs, constant.outputs)
        found = True
    return found


def _make_reshapes_constant(graph: ir.Graph) -> None:
    """Replace computed shapes (Shape, Gather, Concat) of reshapes with one unknown dimension by a constant with -1.

    Plainer for people, and TensorRT calls a network with computed shapes a network with shape inputs.
    """
    for node in list(graph):
        shape = node.outputs[0].shape
        if node.op_type != "Reshape" or shape is None or node.inputs[1] is None:
            continue
        dims = [dim if isinstance(dim, int) else -1 for dim in shape]
        if dims.count(-1) > 1 or 0 in dims or ir.convenience.get_const_tensor(node.inputs[1]) is not None:
            continue
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(dims, dtype=ir.DataType.INT64)})
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])


def _use_global_average_pool(graph: ir.Graph) -> None:
    """Write a mean over all spatial dimensions, which torch makes of AdaptiveAvgPool(1), as what it is.

    ONNX Runtime has an integer GlobalAveragePool and no integer ReduceMean.
    """
    for node in graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
            continue
        shape, axes = node.inputs[0].shape, ir.convenience.get_const_tensor(node.inputs[1])
        if shape is None or axes is None or node.attributes.get_int("keepdims", 1) != 1:
            continue
        rank = len(shape)
        if rank > 2 and {int(axis) % rank for axis in axes.numpy()} == set(range(2, rank)):
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
            node.attributes.clear()


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 0
