"""The scales of output channels, written behind the convolution or matrix product whose weight has them.

``conv(x, codes_c * scale_c) + bias_c = (scale_c / scale) * conv(x, codes_c * scale) + bias_c``, the right side being
BatchNormalization of the convolution without bias; c: output channels, ``scale``: one for all, their geometric mean.
Behind a MatMul, whose bias is an Add anyway, it is a Mul.

TensorRT-RTX 1.7 applies scales that differ in the kernel behind the convolution, for which this writes its sums in
float32; with one scale in the dtype of the float side, half the traffic. A projection of which slices are read (query,
key and value of attention) it multiplies in float where scales differ, in int8 where they do not. Convolution,
BatchNormalization and activation is the order that TensorRT fuses (developer guide, "Explicit quantization").
"""

import numpy as np
import onnx_ir as ir

from fxq.export.in_float32 import array_of

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def move_channel_scales(model: ir.Model) -> None:
    """Write them so wherever nothing else reads the integer weight; ``model`` is modified."""
    for node in list(model.graph):
        weight = _weight_of(node)
        if weight is not None and all(value is not None and value.is_initializer() for value in weight.inputs):
            _move(model.graph, node, weight)


def _weight_of(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear that makes the weight of ``node`` alone, with a scale for each output channel."""
    if node.op_type not in (*_CONVOLUTIONS, "MatMul"):
        return None
    source = _only_producer(node.inputs[1])
    axis = 1 if node.op_type in ("ConvTranspose", "MatMul") else 0
    if node.op_type == "MatMul" and source is not None and source.op_type == "Transpose":
        source, axis = _only_producer(source.inputs[0]), 0
    if source is None or source.op_type != "DequantizeLinear" or "block_size" in source.attributes:
        return None
    is_grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1
    has_stored_bias = all(value is not None and value.is_initializer() for value in node.inputs[2:])
    is_per_channel = source.attributes.get_int("axis", -1) == axis
    return source if is_per_channel and has_stored_bias and not is_grouped else None


def _only_producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None and len(value.uses()) == 1 else None


def _move(graph: ir.Graph, node: ir.Node, weight: ir.Node) -> None:
    scale_c = array_of(weight.inputs[1]).astype(np.float64)
    scale = np.exp(np.log(scale_c).mean())
    stem = str(weight.name)
    weight.replace_input_with(1, _store(graph, f"{stem}_scale", np.asarray(scale, np.float32)))
    weight.replace_input_with(2, _store(graph, f"{stem}_zero_point", array_of(weight.inputs[2]).dtype.type(0)))
    weight.attributes.pop("axis")
    if node.op_type == "MatMul":
        stored = [_store(graph, f"{node.name}_scale", (scale_c / scale).astype(np.float32))]
        behind = ir.node("Mul", [node.outputs[0], *stored], name=f"{node.name}_scales")
    else:
        bias_c = array_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros_like(scale_c)
        node.resize_inputs(2)
        parameters = {"scale": scale_c / scale, "bias": bias_c, "mean": 0 * scale_c, "variance": 1 + 0 * scale_c}
        stored = [_store(graph, f"{node.name}_{name}", array.astype(np.float32)) for name, array in parameters.items()]
        attributes = {"epsilon": 0.0}
        behind = ir.node("BatchNormalization", [node.outputs[0], *stored], attributes, name=f"{node.name}_scales")
    _put_behind(graph, node, behind)


def _put_behind(graph: ir.Graph, node: ir.Node, behind: ir.Node) -> None:
    """Let ``behind``, which reads the output of ``node``, take its name and readers."""
    output, new = node.outputs[0], behind.outputs[0]
    behind.metadata_props.update(node.metadata_props)
    new.type, new.shape, name = output.type, output.shape, output.name
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    behind.replace_input_with(0, output)
    output.name, new.name = f"{name}_unscaled", name
    graph.insert_after(node, behind)


def _store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array)))
    graph.register_initializer(value)
    return value
