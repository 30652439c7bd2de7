"""Decompose only the operators of an exported program that need it.

``torch.onnx.export`` always calls ``ExportedProgram.run_decompositions``, which traces the whole program twice more,
half of an export. It takes operators apart: those of the table that it is given, those that write into their inputs,
and composite ones that may return a view of them (``flatten``). Everything else comes back as it went in. So the
operators that it would change are cut out into a program of their own, decomposed there, and put back.

Source: torch/export/exported_program.py, ``_split_decomp_table_to_cia_and_python_decomp``; torch/_export/utils.py,
``_check_valid_to_preserve``.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram, ExportGraphSignature, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, SymIntArgument, TensorArgument
from torch.utils import _pytree as pytree

# What else a program may hold, constants and what it writes, each tracing treats anew.
_PLAIN = {InputKind.USER_INPUT, InputKind.PARAMETER, InputKind.BUFFER, OutputKind.USER_OUTPUT}
# torch.onnx writes no node for them, read or not.
_IGNORED = (operator.getitem, torch.ops.aten._assert_tensor_metadata.default)


def decompose_where_needed(program: ExportedProgram) -> None:
    """Let ``program`` decompose itself in place, operator by operator, where it is asked to ``run_decompositions``."""
    decompose_all = program.run_decompositions

    def run_decompositions(table: dict[Any, Any]) -> ExportedProgram:
        return program if decompose_in_place(program, table) else decompose_all(table)

    program.run_decompositions = run_decompositions


def decompose_in_place(program: ExportedProgram, table: dict[Any, Any]) -> bool:
    """Decompose as ``program.run_decompositions(table)``; return False, with nothing done, where all must be traced."""
    changed = _changed_nodes(program.graph, table)
    if not _is_plain(program.graph_signature) or not all(_is_functional(node) for node in changed):
        return False
    if not changed:
        return True
    inputs, results = _inputs_of(program, changed), _results_of(changed)
    decomposed = _program_of(program, changed, inputs, results).run_decompositions(table)
    if not _is_plain(decomposed.graph_signature) or len(decomposed.graph_signature.input_specs) != len(inputs):
        return False
    _put_back(program, decomposed.graph, inputs, results)
    for node in reversed(changed):
        program.graph.erase_node(node)
    return True


def _is_plain(signature: ExportGraphSignature) -> bool:
    kinds = {spec.kind for spec in signature.input_specs} | {spec.kind for spec in signature.output_specs}
    return kinds <= _PLAIN


def _changed_nodes(graph: fx.Graph, table: Mapping[Any, Any]) -> dict[fx.Node, None]:
    """Return the nodes that decomposing changes, and those that read a size or a list of one, in order."""
    changed: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        reads_part = any(read in changed and not _is_tensor(read) for read in node.all_input_nodes)
        if reads_part or not _stays(node, table):
            changed[node] = None
    return changed


def _stays(node: fx.Node, table: Mapping[Any, Any]) -> bool:
    if node.target in _IGNORED:
        return True
    if not isinstance(node.target, OpOverload) or node.target in table or not node.users:
        return False
    # Where a size is computed depends on which operators ask for it.
    return isinstance(node.meta.get("val"), Tensor | list | tuple) and _is_kept_whole(node.target)


def _is_kept_whole(function: OpOverload) -> bool:
    if function._schema.is_mutable:
        return False
    may_alias = any(argument.alias_info is not None for argument in function._schema.arguments)
    return not (function._can_decompose() and (may_alias or torch.Tag.maybe_aliasing_or_mutating in function.tags))


def _is_functional(node: fx.Node) -> bool:
    """Return whether ``node`` can be traced apart from the others: it writes nothing, asserts nothing, is read."""
    is_written = isinstance(node.target, OpOverload) and node.target._schema.is_mutable
    return node.op == "call_function" and bool(node.users) and node.meta.get("val") is not None and not is_written


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _inputs_of(program: ExportedProgram, changed: Mapping[fx.Node, None]) -> list[fx.Node]:
    """Return what the nodes read, the inputs of the program first: sizes are computed from them."""
    users = set(program.graph_signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    read = [node for reader in changed for node in reader.all_input_nodes if node not in changed]
    return list(dict.fromkeys([*inputs, *read]))


def _results_of(changed: Mapping[fx.Node, None]) -> list[fx.Node]:
    """Return what other nodes read, and sizes, which stay where the model asks for them."""
    return [node for node in changed if _is_size(node) or any(reader not in changed for reader in node.users)]


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.SymInt)


def _program_of(
    program: ExportedProgram, changed: Mapping[fx.Node, None], inputs: list[fx.Node], results: list[fx.Node]
) -> ExportedProgram:
    """Return the program that computes ``results`` from ``inputs`` by the nodes ``changed``."""
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        copied[node] = graph.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    for node in changed:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(tuple(copied[node] for node in results))
    takes = [TensorArgument(copied[node].name) for node in inputs]
    gives = [(SymIntArgument if _is_size(node) else TensorArgument)(copied[node].name) for node in results]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, argument, None) for argument in takes],
        [OutputSpec(OutputKind.USER_OUTPUT, argument, None) for argument in gives],
    )
    specs = pytree.tree_structure((tuple(takes), {})), pytree.tree_structure(tuple(gives))
    # It names none of them: a result that turns out to be an input has no node any more, and torch would look for it.
    call = ModuleCallEntry("", ModuleCallSignature([], [], *specs))
    module = fx.GraphModule({}, graph)
    return ExportedProgram(module, graph, signature, {}, program.range_constraints, [call])


def _put_back(program: ExportedProgram, part: fx.Graph, inputs: list[fx.Node], results: list[fx.Node]) -> None:
    """Copy what the nodes of ``part`` compute in front of the results that they stand for."""
    found = [node for node in part.nodes if node.op == "placeholder"]
    copied = dict(zip(found, inputs, strict=True))
    for old, wanted in zip(results, part.output_node().args[0], strict=True):  # type: ignore[arg-type]
        with program.graph.inserting_before(old):
            for node in _behind(wanted, copied):
                copied[node] = program.graph.node_copy(node, copied.__getitem__)
        new = copied[wanted]
        old.replace_all_uses_with(new)
        program.graph_signature.replace_all_uses(old.name, new.name)


def _behind(wanted: fx.Node, copied: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Return ``wanted`` and what it is computed from, as far as it is not copied yet, in an order that can run."""
    order: dict[fx.Node, None] = {}
    stack = [wanted]
    while stack:
        node = stack[-1]
        missing = [read for read in node.all_input_nodes if read not in copied and read not in order]
        stack += missing
        if not missing and stack.pop() not in copied:
            order[node] = None
    return list(order)
