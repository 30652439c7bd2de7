"""Names that lead back to the model: ``layer1.0.conv1/Conv``, ``layer1.0.conv1_input_quantizer/QuantizeLinear``.

A node is called by the module path it comes from and its operator, a value by the node that makes it, an initializer
by its path in the module, an input by its parameter of ``forward``, an output ``output``, ``output_1``, ... or by its
key where the model returns a dict.
"""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from torch import Tensor, fx

from fxq.compare.outputs import named_leaves
from fxq.export.capture import BATCH, PREFIX

_SYMBOL = re.compile(r"\bs\d+\b")


class _Names:
    """Hands out each name once; the second asker gets ``name_1``."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        count = self._seen[name]
        self._seen[name] += 1
        return name if count == 0 else self.unique(f"{name}_{count}")


def apply_names(model: ir.Model, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Rename everything in ``model`` and drop torch's metadata, which holds stack traces with file names."""
    graph, values, nodes = model.graph, _Names(), _Names()
    for value, name in [*zip(graph.inputs, input_names, strict=False), *zip(graph.outputs, output_names, strict=False)]:
        value.name = values.unique(name)
    stored = [value for value in graph.initializers.values() if (value.name or "").startswith(PREFIX)]
    for value in stored:
        value.name = values.unique((value.name or "").removeprefix(PREFIX))
    for node in graph:
        node.name = nodes.unique(_node_name(node))
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = values.unique(f"{node.name}_output_{index}")
    _name_constants(graph, set(stored), values)
    _name_batch(model)
    common.ClearMetadataAndDocStringPass()(model)


def input_names_of(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> list[str]:
    """Return a name for each tensor in ``inputs``: the parameter of ``forward`` it is passed to."""
    parameters = [str(node.target).lstrip("*") for node in gm.graph.nodes if node.op == "placeholder"]
    names = []
    for index, value in enumerate(inputs):
        name = parameters[index] if index < len(parameters) else f"{parameters[-1]}_{index}"
        names += [leaf for leaf, _ in named_leaves(value, name, Tensor)]
    return names


def _node_name(node: ir.Node) -> str:
    # torch records [module path, ..., FX node] on each ONNX node, as text.
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return f"{scopes[-2]}/{node.op_type}" if len(scopes) > 1 else node.op_type


def _name_constants(graph: ir.Graph, named: set[ir.Value], values: _Names) -> None:
    """Call a constant that has no path in the module by the node that reads it."""
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value not in named:
                named.add(value)
                value.name = values.unique(f"{node.name}_constant_{index}")


def _name_batch(model: ir.Model) -> None:
    """Call the one dynamic dimension ``batch`` where torch calls it s33 or the like."""
    for value in _values(model.graph):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([_named(dim) for dim in value.shape])


def _named(dim: int | ir.SymbolicDim) -> int | str | None:
    """Return a size as it is written; sizes of one name are equal, and runtimes let them share memory."""
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else _SYMBOL.sub(BATCH, dim.value)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
