"""The float side of a file in float16 or bfloat16: stored tensors, scales, casts, and all that is computed in float.

Runtimes that are strongly typed (TensorRT from 11 on) run what is not quantized in the dtype that the file gives it.
Every float32 value becomes ``dtype``, but for the nodes that need float32: these get a Cast in front and behind, which
compilers fuse. What stays, and why, is a table of the result: sums of many terms, values that ``dtype`` cannot hold
(found on samples, value_ranges.py), and what ONNX defines in float32 alone.

Source: TensorRT developer guide, "Strongly typed networks"; ONNX's operator schemas for which dtypes they take.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fxq.errors import ExportError
from fxq.export.in_float32 import FLOAT, FloatSide, array_of, find_reasons, is_scale, limits_of


def write_float_side(model: ir.Model, side: FloatSide) -> dict[str, str]:
    """Give ``model`` another float side; it is modified.

    Returns:
        Why a node stays in float32, by its name.

    Raises:
        ExportError: a node has a body (If, Loop, Scan), or a value has no known dtype.
    """
    _check(model.graph)
    reasons = find_reasons(model, side)
    _Writer(model.graph, side, reasons).write()
    return {str(node.name): reason for node, reason in reasons.items()}


def _check(graph: ir.Graph) -> None:
    for node in graph:
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            raise ExportError(
                f"node {node.name!r} is a {node.op_type}, whose body keeps its dtypes: float_dtype takes models "
                "without control flow. Leave float_dtype out"
            )
        for value in node.outputs:
            if value.dtype is None:
                raise ExportError(
                    f"output {value.name!r} of node {node.name!r} has no known dtype: leave float_dtype out"
                )


@dataclass
class _Writer:
    graph: ir.Graph
    side: FloatSide
    in_float32: Container[ir.Node]
    written: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        nodes = list(self.graph)
        outputs = [value for value in self.graph.outputs if value.dtype == FLOAT]
        floats = {
            value
            for node in nodes
            for value in (*node.inputs, *node.outputs)
            if value is not None and value.dtype == FLOAT
        }
        for value in self.graph.inputs:
            if value.dtype == FLOAT and not self.side.keep_io_types:
                value.dtype = self.side.dtype
        for node in nodes:
            self._write_node(node, floats)
        for value in outputs:
            self._write_output(value)
        for value in list(self.graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[str(value.name)]

    def _write_node(self, node: ir.Node, floats: set[ir.Value]) -> None:
        is_kept = node in self.in_float32
        inputs, outputs = _allowed(node, self.side.dtype)
        for index, value in enumerate(node.inputs):
            if value in floats and value is not None:
                dtype = self.side.dtype if inputs(index) and not is_kept else FLOAT
                node.replace_input_with(index, self._as(value, dtype, node))
        for index, value in enumerate(node.outputs):
            if value in floats and outputs(index) and not is_kept:
                value.dtype = self.side.dtype
        if not is_kept:
            _write_attributes(node, self.side.dtype)

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """Return ``value`` in ``dtype``: a stored tensor rewritten, another cast, once for all readers."""
        if value.is_initializer():
            return self._stored(value, dtype, is_scale(value))
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.written:
            cast = _cast(value, dtype, f"{value.name}_{dtype.name.lower()}", _scope(value, reader))
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            self.written[key] = cast.outputs[0]
        return self.written[key]

    def _stored(self, value: ir.Value, dtype: ir.DataType, is_scale: bool) -> ir.Value:
        if dtype == FLOAT and not is_scale:
            return value
        key = (value, dtype)
        if key not in self.written:
            array = array_of(value)
            if is_scale and array.max() <= limits_of(self.side.dtype).max:
                array = _rounded_scale(array, self.side.dtype)
            name = f"{value.name}_{dtype.name.lower()}"
            tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
            new = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=value.shape)
            self.graph.register_initializer(new)
            self.written[key] = new
        return self.written[key]

    def _write_output(self, value: ir.Value) -> None:
        """Give a graph output the dtype that it is to have, and its name."""
        wanted = FLOAT if self.side.keep_io_types else self.side.dtype
        if value.dtype == wanted or value.producer() is None:
            return
        name, producer = str(value.name), value.producer()
        assert producer is not None
        cast = _cast(value, wanted, name, dict(producer.metadata_props))
        value.name = f"{name}_{value.dtype.name.lower()}"  # type: ignore[union-attr]  # checked
        self.graph.insert_after(producer, cast)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str, metadata: Mapping[str, str]) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}_to_{dtype.name.lower()}")
    cast.metadata_props.update(metadata)
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = name, dtype, value.shape
    return cast


def _scope(value: ir.Value, reader: ir.Node) -> Mapping[str, str]:
    producer = value.producer()
    return dict((reader if producer is None else producer).metadata_props)


def _write_attributes(node: ir.Node, dtype: ir.DataType) -> None:
    """Turn an attribute that says float32 (Cast's ``to``, a constant's value) into ``dtype``."""
    for name in ("to", "dtype", "output_dtype"):
        if node.attributes.get_int(name, 0) == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(dtype))
    tensor = node.attributes.get_tensor("value", None)
    if tensor is not None and tensor.dtype == FLOAT:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype))


def _allowed(node: ir.Node, dtype: ir.DataType) -> tuple[Callable[[int], bool], Callable[[int], bool]]:
    """Return whether ONNX takes ``dtype`` at an input, and at an output, of ``node``."""
    try:
        schema = onnx.defs.get_schema(node.op_type, node.version or _opset(node), node.domain)
    except onnx.defs.SchemaError:  # an operator of a runtime's own
        return (lambda _: False), (lambda _: False)
    word = f"tensor({dtype.name.lower()})"

    def takes(parameters: Sequence[Any], index: int) -> bool:
        return word in parameters[min(index, len(parameters) - 1)].types  # the last may stand for several

    return (lambda index: takes(schema.inputs, index)), (lambda index: takes(schema.outputs, index))


def _opset(node: ir.Node) -> int:
    graph = node.graph
    return graph.opset_imports[node.domain] if graph is not None and node.domain in graph.opset_imports else 1


def _rounded_scale(scale: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Return the nearest that ``dtype`` holds: a quantizer and what reads its codes agree on it in any dtype."""
    limits = limits_of(dtype)
    return np.asarray(np.clip(scale, limits.smallest_subnormal, limits.max).astype(dtype.numpy()).astype(np.float32))
