"""How stored integers lie in the file: packed, transposed, and in the form that ONNX Runtime runs fastest.

A weight whose operator computes in float (weight-only quantization) can be written in three ways, which compute the
same. Measured with ONNX Runtime 1.31 on two cores with VNNI:

- DequantizeLinear of the tensor as PyTorch stores it runs anew in each inference: a linear layer of 768 x 3072 then
  takes 3 to 6 times as long as in float, with 4-bit blocks 4 to 40 times, MobileNetV2 2.2 times.
- DequantizeLinear of a linear weight stored as (in, out), read by MatMul, or by Gemm without transB, becomes one
  MatMulNBits, which reads the integers: 1.1 to 2.8 times as fast as float. It rounds activations to 8 bits in blocks
  (47 dB); the session option session.qdq_matmulnbits_accuracy_level = 1 keeps them in float, and is slow.
- Cast and Mul of any other weight are folded into a float weight when the file is loaded: as fast as float. Constant
  folding leaves a DequantizeLinear alone (onnxruntime/core/optimizer/constant_folding.cc).

All functions modify what they are given.
"""

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fxq.errors import ExportError
from fxq.export.hidden_clamps import hide_clamp

_MATMUL_NBITS_DTYPES = (ir.DataType.INT4, ir.DataType.INT8, ir.DataType.UINT8)


def fold_into_codes(graph: ir.Graph) -> None:
    """Take Cast to INT4, and Transpose for MatMulInteger, of a stored tensor into the tensor, which keeps its name."""
    for source in list(graph.initializers.values()):
        readers = [reader for reader, _ in source.uses()]
        if not readers:
            continue
        if all(_is_int4_cast(reader) for reader in readers):
            _replace(source, _numpy(source).astype(ir.DataType.INT4.numpy()))
        elif all(_is_transpose_for(reader, "MatMulInteger") for reader in readers):
            _replace(source, _numpy(source).T)
        else:
            continue
        for reader in readers:
            reader.outputs[0].replace_all_uses_with(source)
            graph.remove(reader, safe=True)


def make_weight_only_fast(model: ir.Model) -> None:
    """Bring the weights of operators that compute in float into the form that ONNX Runtime runs fastest."""
    weights = defaultdict(list)
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and _stored_inputs(node)[0].is_initializer():
            weights[_stored_inputs(node)].append(node)
    for (codes, _), nodes in weights.items():
        if not all(_feeds_float(node) for node in nodes):
            continue
        # ONNX Runtime merges equal nodes first, and a DequantizeLinear with several readers is not fused.
        if len(codes.uses()) == 1 and _is_linear_weight(nodes[0]):
            _transpose(model.graph, nodes[0])
        if len(nodes) == 1 and _has_fused_form(nodes[0]):
            ((product, _),) = nodes[0].outputs[0].uses()
            hide_clamp(model.graph, product)
        elif _is_plain_product(nodes[0]):
            _write_as_cast_and_mul(model.graph, nodes)
    common.RemoveUnusedNodesPass()(model)  # zero points, all 0


def _is_int4_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.INT4


def _is_transpose_for(node: ir.Node, op_type: str) -> bool:
    """Return whether ``node`` transposes a matrix that one operator takes as its second."""
    uses = list(node.outputs[0].uses())
    return node.op_type == "Transpose" and [(reader.op_type, index) for reader, index in uses] == [(op_type, 1)]


def _feeds_float(node: ir.Node) -> bool:
    """Return whether no reader of the weight takes a quantized activation with it, seen through a Transpose."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    readers += [behind for reader in readers if reader.op_type == "Transpose" for behind, _ in reader.outputs[0].uses()]
    return not any(_is_quantized_activation(value) for reader in readers for value in reader.inputs)


def _is_quantized_activation(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return False
    return not producer.inputs[0].is_initializer()


def _is_linear_weight(node: ir.Node) -> bool:
    """Return whether a weight (out, in) is read by one Gemm, or by one Transpose and MatMul."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or not _has_fused_dtype(node) or len(_numpy(node.inputs[0]).shape) != 2:
        return False
    reader, index = uses[0]
    if reader.op_type == "Gemm":
        return index == 1 and reader.attributes.get_int("transB", 0) == 1
    return _is_transpose_for(reader, "MatMul")


def _has_fused_dtype(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype in _MATMUL_NBITS_DTYPES


def _transpose(graph: ir.Graph, node: ir.Node) -> None:
    """Store a linear weight as (in, out)."""
    codes, scale = _stored_inputs(node)
    _replace(codes, _numpy(codes).T)
    if _numpy(scale).ndim == 2:
        _replace(scale, _numpy(scale).T)
    if "axis" in node.attributes:
        node.attributes["axis"] = ir.AttrInt64("axis", 1 - node.attributes["axis"].as_int() % 2)
    node.outputs[0].shape = ir.Shape(codes.shape or ())
    ((reader, _),) = node.outputs[0].uses()
    if reader.op_type == "Gemm":
        reader.attributes.pop("transB")
    else:
        reader.outputs[0].replace_all_uses_with(node.outputs[0])
        graph.remove(reader, safe=True)


def _has_fused_form(node: ir.Node) -> bool:
    readers = [(reader.op_type, index) for reader, index in node.outputs[0].uses()]
    return _has_fused_dtype(node) and readers in ([("MatMul", 1)], [("Gemm", 1)])


def _is_plain_product(node: ir.Node) -> bool:
    """Return whether a weight is its codes times its scales, with no zero points and no blocks."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    return "block_size" not in node.attributes and (zero_point is None or not _numpy(zero_point).any())


def _write_as_cast_and_mul(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Replace ``nodes``, which dequantize the same codes with the same scales."""
    codes, scale = _stored_inputs(nodes[0])
    dtype, spread = scale.dtype or ir.DataType.FLOAT, _numpy(scale)
    if "axis" in nodes[0].attributes:
        shape = [1] * _numpy(codes).ndim
        shape[nodes[0].attributes["axis"].as_int()] = -1
        spread = spread.reshape(shape)
    if {reader for reader, _ in scale.uses()} != set(nodes):
        scale = _copy(graph, scale)
    # In float32: constant folding has no kernel that multiplies float16.
    _replace(scale, spread.astype(np.float32))
    cast = ir.node("Cast", [codes], {"to": ir.DataType.FLOAT})
    new = [cast, ir.node("Mul", [cast.outputs[0], scale])]
    if dtype != ir.DataType.FLOAT:
        new.append(ir.node("Cast", [new[-1].outputs[0]], {"to": dtype}))
    for node in new:
        node.metadata_props.update(nodes[0].metadata_props)
        node.outputs[0].shape = ir.Shape(codes.shape or ())
        node.outputs[0].dtype = ir.DataType.FLOAT
    new[-1].outputs[0].dtype = dtype
    graph.insert_before(nodes[0], new)
    for node in nodes:
        node.outputs[0].replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _stored_inputs(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    codes, scale = node.inputs[:2]
    if codes is None or scale is None:
        raise ExportError(f"{node.name!r} has no codes or no scale")
    return codes, scale


def _copy(graph: ir.Graph, value: ir.Value) -> ir.Value:
    copy = ir.Value(name=f"{value.name}_{len(graph.initializers)}", const_value=value.const_value)
    graph.register_initializer(copy)
    return copy


def _replace(value: ir.Value, array: np.ndarray) -> None:
    """Give a stored tensor another value."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)
    value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(array.shape)


def _numpy(value: ir.Value | None) -> np.ndarray:
    if value is None or value.const_value is None:
        raise ExportError(f"a stored tensor has no value: {value}")
    return np.asarray(value.const_value.numpy())
