"""Questions about the quantizers of a file: what a node computes, and whether it reads integers."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fxq.export.qdq_rules import constant_of
from fxq.kinds import ACTIVATIONS
from fxq.verification.formulas import Formula, find_formulas, without_dequantizer, without_pairs
from fxq.verification.module_paths import QUANTIZERS

# ONNX's operators in the words of fxq/kinds.py; what depends on more than the operator is below.
OP_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "Conv": "conv",
        "ConvTranspose": "conv_transpose",
        "Add": "add",
        "Mul": "mul",
        "Div": "div",
        "Sub": "sub",
        "Concat": "cat",
        "MaxPool": "max_pool",
        "AveragePool": "avg_pool",
        "GlobalAveragePool": "global_avg_pool",
        "ReduceMean": "mean",
        "BatchNormalization": "batch_norm",
        "Relu": "relu",
        "Clip": "clip",
        "Sigmoid": "sigmoid",
        "HardSigmoid": "hardsigmoid",
        "HardSwish": "hardswish",
        "LeakyRelu": "leaky_relu",
        "PRelu": "prelu",
        "Elu": "elu",
        "Mish": "mish",
        "Gelu": "gelu",
        "Tanh": "tanh",
        "Softmax": "softmax",
        "LayerNormalization": "layer_norm",
        "GroupNormalization": "group_norm",
        "InstanceNormalization": "instance_norm",
        "Resize": "resize",
        "LSTM": "lstm",
        "GRU": "gru",
        "RNN": "rnn",
        **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "DepthToSpace"), "reshape"),
        **dict.fromkeys(("SpaceToDepth", "Expand"), "reshape"),
        "Transpose": "transpose",
        **dict.fromkeys(("Slice", "Split", "Gather"), "slice"),
    }
)
LAYERS = frozenset({"conv", "conv_transpose", "linear"})
CONVOLUTIONS = frozenset({"conv", "conv_transpose"})
MOVES_DATA = frozenset({"reshape", "transpose", "slice"})
_KEEPS_VALUES = MOVES_DATA | {"max_pool"}
_PRODUCTS = ("MatMul", "Gemm")
_WEIGHT_INPUTS = {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (1, 0), "Gemm": (1, 0)}
_IN_EPILOGUE = ACTIVATIONS | MOVES_DATA | {"batch_norm", "mul", "div"}


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that a node runs: the branches of an If, the body of a Loop or Scan."""
    return [one.as_graph() for one in node.attributes.values() if one.type == ir.AttributeType.GRAPH]


class Questions:
    """Answers about one model, which is not changed.

    They are about the graph itself; of what stands in the bodies of its nodes only ``constants`` and kinds are known.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    @cached_property
    def constants(self) -> frozenset[ir.Value]:
        """Stored tensors, and what is computed of them alone."""
        stored = (value for graph in self.model.graphs() for value in graph.initializers.values())
        found = {value for value in stored if not value.is_graph_input()}
        # Older files list their initializers among the inputs as well.
        found |= {value for value in self.model.graph.inputs if value.is_initializer()}
        for node in self.model.graph.all_nodes():
            inputs = [value for value in node.inputs if value is not None]
            # A body reads what it wants of the graphs around it.
            if inputs and all(value in found for value in inputs) and not bodies(node):
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def formulas(self) -> Mapping[ir.Node, Formula]:
        """Activations written as several nodes, by the last of these."""
        return find_formulas(self.model.graph, self.constants)

    @cached_property
    def rounded_formulas(self) -> Mapping[ir.Node, Formula]:
        """Those that have quantizers inside, or several in front; each is computed from what these round."""
        found = find_formulas(self.model.graph, self.constants, without_pairs)
        new = {last: formula for last, formula in found.items() if last not in self.formulas}
        # A hard sigmoid in a hard swish is a part of that.
        parts = {node for formula in new.values() for node in formula.nodes[:-1]}
        return {last: formula for last, formula in new.items() if last not in parts}

    @cached_property
    def in_rounded_formulas(self) -> frozenset[ir.Node]:
        """The nodes of these."""
        return frozenset(node for formula in self.rounded_formulas.values() for node in formula.nodes)

    @cached_property
    def _formulas_of(self) -> Mapping[tuple[ir.Value, ir.Node], Formula]:
        # Of two that share nodes, as a hard swish has a hard sigmoid in it, the longer comes last.
        return {(one.source, node): one for one in self.formulas.values() for node in one.nodes}

    def kind(self, node: ir.Node) -> str:
        """Return what a node computes, in the words of fxq/kinds.py; "other" where there is none."""
        if node.op_type in _PRODUCTS:
            return "linear" if self.weight_index(node) is not None else "matmul"
        formula = self.formulas.get(node)
        return OP_KINDS.get(node.op_type, "other") if formula is None else formula.kind

    def weight_index(self, node: ir.Node) -> int | None:
        """Return which input of a convolution or product is its weight, None for a product of two activations."""
        candidates = _WEIGHT_INPUTS.get(node.op_type, ())
        return next((index for index in candidates if node.inputs[index] in self.constants), None)

    def layers(self) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
        """Yield each convolution and linear layer, what it reads and its weight."""
        for node in self.model.graph:
            index = self.weight_index(node)
            if index is None:
                continue
            data, weight = node.inputs[1 - index], node.inputs[index]
            if data is not None and weight is not None:
                yield node, data, weight

    def activations(self, node: ir.Node) -> list[ir.Value]:
        """Return what a node reads, but for stored tensors."""
        return [value for value in node.inputs if value is not None and value not in self.constants]

    def dequantizer(self, value: ir.Value | None) -> ir.Node | None:
        """Return the DequantizeLinear that makes a value, perhaps moved to other places; None where there is none."""
        found = self._quantized_by(value)
        return None if found is None or found.op_type == "FakeQuantize" else found

    def is_quantized(self, value: ir.Value | None) -> bool:
        """Does the value come from integers?"""
        return self._quantized_by(value) is not None

    def _quantized_by(self, value: ir.Value | None) -> ir.Node | None:
        while value is not None:
            node = value.producer()
            if node is None or node.op_type in ("DequantizeLinear", "FakeQuantize"):
                return node
            is_whole_concat = node.op_type == "Concat" and all(map(self.is_quantized, node.inputs[1:]))
            if self.kind(node) not in _KEEPS_VALUES and not is_whole_concat:
                return None
            value = node.inputs[0]
        return None

    def computed_by(self, value: ir.Value | None) -> ir.Node | None:
        """Return the operation that computes a value, behind quantizers and what only moves it; None for an input."""
        while value is not None and (node := value.producer()) is not None:
            if node.op_type not in QUANTIZERS and self.kind(node) not in _KEEPS_VALUES:
                return node
            value = node.inputs[0]
        return None

    def is_integer_layer(self, node: ir.Node) -> bool:
        """Does a convolution or linear layer read integers, and has it integer weights?"""
        index = self.weight_index(node)
        return index is not None and all(self.is_quantized(node.inputs[at]) for at in (index, 1 - index))

    def only_reader(self, value: ir.Value) -> ir.Node | None:
        """Return the node that reads a value, None where several do, or one in a body, or it is an output."""
        readers = self.readers(value)
        is_alone = len(readers) == 1 and readers[0].graph is value.graph
        return readers[0] if is_alone and not value.is_graph_output() else None

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes that read a value, each once."""
        return list(dict.fromkeys(reader for reader, _ in value.uses()))

    def computing_readers(self, codes: ir.Value) -> list[ir.Node]:
        """Return what computes with the values of some codes, behind what only moves them."""
        waiting, seen, found = [codes], {codes}, dict[ir.Node, None]()
        while waiting:
            for reader in self.operations_behind(waiting.pop()):
                if reader.op_type == "DequantizeLinear" or self.kind(reader) in MOVES_DATA:
                    new = [value for value in reader.outputs if value not in seen]
                    seen.update(new)
                    waiting += new
                else:
                    found[reader] = None
        return list(found)

    def operations_behind(self, value: ir.Value) -> list[ir.Node]:
        """Return what reads a value, each once, and of an activation written as several nodes the last."""
        found = [(self._formulas_of.get((without_dequantizer(value), one)), one) for one in self.readers(value)]
        return list(dict.fromkeys(one if formula is None else formula.last for formula, one in found))

    def convolution_of(self, value: ir.Value | None, through_quantizers: bool = False) -> ir.Node | None:
        """Walk back from what an add reads to the integer convolution whose kernel can absorb it, None for none."""
        while value is not None and (node := value.producer()) is not None and not value.is_graph_output():
            kind, formula = self.kind(node), self.formulas.get(node)
            if len(self.operations_behind(value)) != 1:
                return None
            if kind in CONVOLUTIONS:
                return node if self.is_integer_layer(node) else None
            is_quantizer = node.op_type in ("QuantizeLinear", "DequantizeLinear")
            if not (kind in _IN_EPILOGUE or (is_quantizer and through_quantizers)):
                return None
            inputs = self.activations(node) if formula is None else [formula.source]
            value = inputs[0] if len(inputs) == 1 or is_quantizer else None
        return None

    def same_range(self, one: ir.Node, other: ir.Node) -> bool:
        """Have two quantizers the same scale and zero point?"""
        return all(
            np.array_equal(np.ravel(a), np.ravel(b))
            for a, b in ((_parameter(one, index), _parameter(other, index)) for index in (1, 2))
        )


def _parameter(node: ir.Node, index: int) -> np.ndarray:
    found = constant_of(node, index)
    return np.zeros(1) if found is None else found
