"""The scales of a convolution's output channels, written behind the convolution.

``conv(x, codes_c * scale_c) + bias_c = (scale_c / scale) * conv(x, codes_c * scale) + bias_c``, the right side being
BatchNormalization of the convolution without bias; c: output channels, ``scale``: one for all, their geometric mean.

TensorRT-RTX 1.7 applies scales that differ in the kernel behind the convolution, for which this writes its sums in
float32; with one scale in the dtype of the float side, half the traffic. Conv, BatchNormalization and activation is the
order that TensorRT fuses (developer guide, "Explicit quantization", "Q/DQ layer-placement recommendations").
"""

import numpy as np
import onnx_ir as ir


def move_channel_scales(model: ir.Model) -> None:
    """Write them so for each convolution whose integer weight nothing else reads; ``model`` is modified."""
    for node in list(model.graph):
        weight = node.inputs[1].producer() if node.op_type in ("Conv", "ConvTranspose") and node.inputs[1] else None
        if weight is not None and _is_movable(node, weight):
            _move(model.graph, node, weight)


def _is_movable(node: ir.Node, weight: ir.Node) -> bool:
    axis = 0 if node.op_type == "Conv" else 1
    return (
        weight.op_type == "DequantizeLinear"
        and len(weight.outputs[0].uses()) == 1
        and "block_size" not in weight.attributes
        and weight.attributes.get_int("axis", -1) == axis
        and (axis == 0 or node.attributes.get_int("group", 1) == 1)
        and all(value is not None and value.is_initializer() for value in (*weight.inputs, *node.inputs[2:]))
    )


def _move(graph: ir.Graph, node: ir.Node, weight: ir.Node) -> None:
    scale_c = _array(weight.inputs[1]).astype(np.float64)
    scale = np.exp(np.log(scale_c).mean())
    stem = str(weight.name)
    weight.replace_input_with(1, _store(graph, f"{stem}_scale", np.asarray(scale, np.float32)))
    weight.replace_input_with(2, _store(graph, f"{stem}_zero_point", _array(weight.inputs[2]).dtype.type(0)))
    weight.attributes.pop("axis")
    bias_c = _array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros_like(scale_c)
    node.resize_inputs(2)
    output = node.outputs[0]
    parameters = {"scale": scale_c / scale, "bias": bias_c, "mean": 0 * scale_c, "variance": 1 + 0 * scale_c}
    stored = [_store(graph, f"{node.name}_{name}", array.astype(np.float32)) for name, array in parameters.items()]
    norm = ir.node("BatchNormalization", [output, *stored], {"epsilon": 0.0}, name=f"{node.name}_scales")
    norm.metadata_props.update(node.metadata_props)
    new = norm.outputs[0]
    new.type, new.shape, name = output.type, output.shape, output.name
    output.replace_all_uses_with(new, replace_graph_outputs=True)
    norm.replace_input_with(0, output)
    output.name, new.name = f"{name}_unscaled", name
    graph.insert_after(node, norm)


def _store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
