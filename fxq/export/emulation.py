"""A bfloat16 file in float32, each value rounded: ONNX Runtime's CPU has Cast to bfloat16, and little else."""

import numpy as np
import onnx_ir as ir

FLOAT, BFLOAT = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def has_bfloat16(model: ir.Model) -> bool:
    """Return whether a value of ``model`` is in bfloat16."""
    values = (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    )
    return any(value.dtype == BFLOAT for value in values)


def emulate_bfloat16(model: ir.Model) -> None:
    """Compute in float32 and round to bfloat16 behind each operator; ``model`` is modified, its names stay."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == BFLOAT and value.const_value is not None:
            array = np.asarray(value.const_value.numpy()).astype(np.float32)
            value.const_value, value.dtype = ir.tensor(array, name=value.name), FLOAT
    for value in graph.inputs:
        if value.dtype == BFLOAT:
            value.dtype = FLOAT
    for node in list(graph):
        for name in ("to", "dtype", "output_dtype"):
            if node.attributes.get_int(name, 0) == BFLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
        constant = node.attributes.get_tensor("value", None)
        if constant is not None and constant.dtype == BFLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(constant.numpy().astype(np.float32)))
        for value in node.outputs:
            if value.dtype == BFLOAT:
                _round(graph, node, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    down = ir.node("Cast", [value], {"to": BFLOAT})
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT})
    down.outputs[0].dtype, up.outputs[0].dtype = BFLOAT, FLOAT
    down.outputs[0].shape = up.outputs[0].shape = value.shape
    value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
    down.replace_input_with(0, value)
    name, value.dtype = value.name, FLOAT
    value.name, up.outputs[0].name = f"{name}_exact", name
    graph.insert_after(node, [down, up])
