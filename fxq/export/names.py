"""Names that lead back to the model: ``layer1.0.conv1/Conv``, ``layer1.0.conv1_input_quantizer/QuantizeLinear``.

A node is called by the module path it comes from and its operator, a value by the node that makes it, an initializer
by its path in the module, an input by its parameter of ``forward``, an output ``output``, ``output_1``, ... or by its
key where the model returns a dict.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from torch import Tensor, fx

from fxq.compare.outputs import named_leaves
from fxq.errors import InputError
from fxq.export.capture import PREFIX
from fxq.literal import has_utf8_form

_SYMBOL = re.compile(r"\bs\d+\b")


class _Names:
    """Hands out each name once; the second asker gets ``name_1``."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        count = self._seen[name]
        self._seen[name] += 1
        return name if count == 0 else self.unique(f"{name}_{count}")


def apply_names(
    model: ir.Model, input_names: Sequence[str], output_names: Sequence[str], symbols: Mapping[str, str]
) -> None:
    """Rename everything in ``model`` and drop torch's metadata, which holds stack traces with file names.

    ``symbols``: what torch's symbols for sizes (s33 and the like) are called.
    """
    graph, values, nodes = model.graph, _Names(), _Names()
    for value, name in [*zip(graph.inputs, input_names, strict=False), *zip(graph.outputs, output_names, strict=False)]:
        value.name = values.unique(name)
    stored = [value for value in graph.initializers.values() if (value.name or "").startswith(PREFIX)]
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    for value in stored:
        name = (value.name or "").removeprefix(PREFIX)
        if name in taken:
            raise InputError(
                f"{name!r} is the name of a stored tensor of the model: call the input or output otherwise"
            )
    for value in stored:
        value.name = values.unique((value.name or "").removeprefix(PREFIX))
    for node in graph:
        node.name = nodes.unique(_node_name(node))
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = values.unique(f"{node.name}_output_{index}")
    _name_constants(graph, set(stored), values)
    _name_sizes(model, symbols)
    common.ClearMetadataAndDocStringPass()(model)


def check_names(
    inputs: Sequence[str], outputs: Sequence[str], new_inputs: Sequence[str] | None, new_outputs: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs, those given in place of the model's own.

    Raises:
        InputError: there are more or fewer than the model has, or they are not distinct texts.
    """
    found = [_replaced(inputs, new_inputs, "input_names"), _replaced(outputs, new_outputs, "output_names")]
    given = [*(new_inputs or ()), *(new_outputs or ())]
    for name in given:
        if sum(one == name for names in found for one in names) > 1:
            raise InputError(f"{name!r} would be the name of two inputs or outputs of the file: give each its own")
    return found[0], found[1]


def _replaced(names: Sequence[str], given: Sequence[str] | None, option: str) -> list[str]:
    if given is None:
        return list(names)
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{option} must be a list of names, got {given!r}")
    if len(given) != len(names):
        raise InputError(f"{option} has {len(given)} names for {len(names)}: {', '.join(names)}; give one for each")
    for name in given:
        if not name.strip() or not has_utf8_form(name):
            raise InputError(f"{option} has the name {name!r}, which is none: give a text that is not empty")
    return list(given)


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


def _name_sizes(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """Call open sizes by their names where torch calls them s33 or the like."""
    for value in _values(model.graph):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([_named(dim, symbols) for dim in value.shape])


def _named(dim: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    """Return a size as it is written; sizes of one name are equal, and runtimes let them share memory."""
    if isinstance(dim, int):
        return dim
    if dim.value is None or not set(_SYMBOL.findall(dim.value)) <= set(symbols):
        return None
    whole = symbols.get(dim.value)
    return whole or _SYMBOL.sub(lambda found: _as_part(symbols[found[0]]), dim.value)


def _as_part(name: str) -> str:
    return name if name.isidentifier() else f"({name})"


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
