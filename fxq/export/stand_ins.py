"""What torch traces in place of quantizers, of which it needs the shapes alone.

Half the nodes of a lowered graph and nearly all of its stored tensors are quantizers and what they read. torch.export
takes milliseconds for each, and all that it finds out is known before: a quantized activation has the shape of the
activation, a stored weight its own. So torch sees one node for a pair of quantize and dequantize, or for a dequantize
of stored codes, without the tensors that they read, and writes in its place what it stands for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import Tensor, fx

from fxq.quant import DEQUANTIZE, LOWERED_OPS, QUANTIZE


def _run_quantized(x: Tensor, index: int, dtype: torch.dtype) -> Tensor:
    """Return ``x`` as if its quantizer changed nothing; torch runs it on constants of one element, while it traces."""
    return x.to(dtype, copy=True)


def _quantized_shape(x: Tensor, index: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _stored_shape(size: Sequence[int], index: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


# Not custom_op, whose Python takes as long as the rest of tracing a node; and not of a lowered graph, as fxq:: is.
torch.library.define("fxq_export::quantized", "(Tensor x, int index, ScalarType dtype) -> Tensor")
torch.library.impl("fxq_export::quantized", "default", _run_quantized)
torch.library.register_fake("fxq_export::quantized", _quantized_shape)
torch.library.define("fxq_export::stored", "(int[] size, int index, ScalarType dtype, Device device) -> Tensor")
torch.library.register_fake("fxq_export::stored", _stored_shape)
QUANTIZED, STORED = torch.ops.fxq_export.quantized.default, torch.ops.fxq_export.stored.default


class StandIns:
    """Puts stand-ins into a graph for torch to trace, and writes in ONNX what they stand for.

    Args:
        gm: the lowered graph.
        prefix: of the names that the file gives to its stored tensors.
    """

    def __init__(self, gm: fx.GraphModule, prefix: str) -> None:
        self._prefix = prefix
        self._tensors = dict([*gm.named_parameters(), *gm.named_buffers()])
        self._replaced: list[fx.Node] = []  # dequantize nodes of ``gm``, by the index of what stands for them
        self._values: dict[str, ir.Value] = {}  # the tensors that they read, by their paths
        self._codes: dict[fx.Node, ir.Value] = {}  # what the quantize nodes make that are written by now

    def put_into(self, graph: fx.Graph, copied: Mapping[fx.Node, fx.Node]) -> None:
        """Put them into ``graph``, a copy of the lowered one; ``copied``: its nodes, by those of the lowered graph."""
        for original, node in copied.items():
            if not self._is_replaced(original):
                continue
            codes: Any = node.args[0]
            index, dtype = len(self._replaced), node.args[-1]
            with graph.inserting_before(node):
                if codes.op == "get_attr":
                    tensor = self._tensors[codes.target]
                    new = graph.call_function(STORED, (list(tensor.shape), index, dtype, tensor.device))
                else:
                    new = graph.call_function(QUANTIZED, (codes.args[0], index, dtype))
            new.meta = node.meta
            node.replace_all_uses_with(new)
            _erase_unread(graph, node)
            self._replaced.append(original)

    def translations(self, op: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Return what writes them with ``op``, an onnxscript Opset; see ``translation_table``."""
        quantize, dequantize = (LOWERED_OPS[function].translation(op) for function in (QUANTIZE, DEQUANTIZE))

        def quantized(x: Any, index: int, dtype: int) -> Any:
            node = self._replaced[index]
            source: Any = node.args[0]
            if source not in self._codes:
                params, codes_dtype = source.args[1:-1], from_torch_dtype(source.args[-1])
                codes = quantize(x, *map(self._value, params), codes_dtype)
                codes.dtype, codes.shape = codes_dtype, ir.Shape(x.shape)
                self._codes[source] = codes
            return dequantize(self._codes[source], *map(self._value, node.args[1:-1]), dtype)

        def stored(size: Sequence[int], index: int, dtype: int, device: str) -> Any:
            return dequantize(*map(self._value, self._replaced[index].args[:-1]), dtype)

        return {QUANTIZED: quantized, STORED: stored}

    def store_tensors(self, model: ir.Model) -> None:
        """Store in ``model`` what the written nodes read, which torch did not see."""
        for value in self._values.values():
            known = model.graph.initializers.get(str(value.name))
            if known is None:
                model.graph.register_initializer(value)
            else:
                value.replace_all_uses_with(known)

    def _is_replaced(self, node: fx.Node) -> bool:
        if not _is_call(node, DEQUANTIZE) or not node.users or not all(map(self._is_stored, node.args[1:3])):
            return False
        codes = node.args[0]
        return self._is_stored(codes) or self._is_read_alike(codes)

    def _is_stored(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.op == "get_attr" and node.target in self._tensors

    def _is_read_alike(self, node: Any) -> bool:
        """Return whether ``node`` quantizes, and all that read it dequantize by the same steps.

        They are then of one scope, which torch writes to the nodes of both.
        """
        return _is_call(node, QUANTIZE) and all(
            _is_call(reader, DEQUANTIZE) and _targets(reader) == _targets(node) for reader in node.users
        )

    def _value(self, argument: Any) -> Any:
        """Return what a translation takes for an argument of a node."""
        if not isinstance(argument, fx.Node):
            return argument
        path = str(argument.target)
        if path not in self._values:
            stored = ir.tensor(self._tensors[path].detach(), name=self._prefix + path)
            kind, shape = ir.TensorType(stored.dtype), ir.Shape(self._tensors[path].shape)
            self._values[path] = ir.Value(name=stored.name, shape=shape, type=kind, const_value=stored)
        return self._values[path]


def _is_call(node: Any, function: Callable[..., Any]) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.target is function and not node.kwargs


def _targets(node: fx.Node) -> list[Any]:
    return [getattr(parameter, "target", None) for parameter in node.args[1:3]]


def _erase_unread(graph: fx.Graph, node: fx.Node) -> None:
    """Erase ``node``, and what only it read: a quantize, and stored tensors."""
    behind = [node, *(source for source in node.all_input_nodes if source.target is QUANTIZE)]
    tensors = dict.fromkeys(source for reader in behind for source in reader.all_input_nodes if source.op == "get_attr")
    for source in [*behind, *tensors]:
        if not source.users:
            graph.erase_node(source)
