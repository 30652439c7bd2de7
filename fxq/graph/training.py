"""What a model does in training only, kept in the graph of a model that will be trained.

A graph is traced in one mode, so the model is traced in both and the graphs are compared. Where they differ in plain
arguments (``training=self.training``, ``dropout_p=self.p if self.training else 0``), the argument follows the mode of
the graph module. Where they differ in the forward of a module without quantizable layers (drop path), the module stays
whole. Of everything else there is a warning: the graph computes it as in evaluation, always.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from fxq.errors import FxqError
from fxq.graph.kinds import module_of
from fxq.graph.match import owner_path
from fxq.graph.modules import add_module, drop_unused, free_path
from fxq.graph.source_lines import line_of
from fxq.graph.trace_failure import has_layers
from fxq.module_tree import all_modules
from fxq.nn.by_mode import ByMode

_ROUNDS = 8  # a module that stays whole may have hidden the next


def trace_for_training(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    leaf_modules: Sequence[str],
    stacklevel: int,
    trace: Callable[[nn.Module, Any, Sequence[str]], GraphModule],
) -> GraphModule:
    """Return the graph of ``model``, which is in eval mode, with what it does in training where a graph can hold it.

    ``trace`` makes a graph of the mode that the model is in.
    """
    leaves = list(leaf_modules)
    for _ in range(_ROUNDS):
        evaluating = trace(model, example_inputs, leaves)
        try:
            training = _trace_in_training(model, example_inputs, leaves, trace)
        except FxqError as error:
            warnings.warn(
                f"what the model does in training only is not kept, for it cannot be traced in training mode: {error}",
                stacklevel=stacklevel,
            )
            return evaluating
        if _have_one_form(evaluating.graph, training.graph):
            _follow_the_mode(evaluating, training.graph)
            return evaluating
        different = _different_owners(evaluating.graph, training.graph)
        whole = [path for path in different if path and not has_layers(model.get_submodule(path))]
        if not whole:
            break
        leaves += whole
    places = "; ".join(
        f"module {path!r} ({line_of(node)})" if path else line_of(node) for path, node in different.items()
    )
    warnings.warn(
        f"the model does something else in training, which its graph cannot hold: in {places}. Training the prepared "
        "model computes it as in evaluation. Move it into a submodule without layers, which stays whole, or pass "
        "training=self.training to a function",
        stacklevel=stacklevel,
    )
    return evaluating


def settle_modes(gm: GraphModule) -> None:
    """Let all that follows the mode be as in evaluation, for good: ``gm`` will not be trained any more."""
    settled = {node: module_of(node) for node in gm.graph.nodes if node.op == "call_module"}
    modes = {node: module.evaluation for node, module in settled.items() if isinstance(module, ByMode)}
    for node, value in modes.items():
        for reader in list(node.users):
            reader.args = _replaced(reader.args, node, value)
            reader.kwargs = _replaced(reader.kwargs, node, value)
        gm.graph.erase_node(node)
    if modes:
        drop_unused(gm)
        gm.recompile()


def _replaced(arguments: Any, node: Node, value: Any) -> Any:
    return map_aggregate(arguments, lambda one: value if one is node else one)


def _trace_in_training(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    leaves: Sequence[str],
    trace: Callable[[nn.Module, Any, Sequence[str]], GraphModule],
) -> GraphModule:
    """Return the graph of ``model`` in training mode.

    Torch's own layers are evaluated as in eval mode all the same; others may ask for their flag.
    """
    modes = [(module, module.training) for module in all_modules(model)]
    for module, _ in modes:
        module.training = True
    try:
        return trace(model, example_inputs, leaves)
    finally:
        for module, is_training in modes:
            module.training = is_training


def _have_one_form(first: Graph, second: Graph) -> bool:
    return [_form(node) for node in first.nodes] == [_form(node) for node in second.nodes]


def _form(node: Node) -> tuple[Any, ...]:
    """Return what a node does, and to which nodes, without its plain arguments."""
    sources = [source.name for source in node.all_input_nodes]
    return node.op, node.target, node.name, sources, len(node.args), sorted(node.kwargs)


def _follow_the_mode(gm: GraphModule, training: Graph) -> None:
    changed = False
    for node, other in zip(list(gm.graph.nodes), list(training.nodes), strict=True):
        for position, pair in enumerate(zip(node.args, other.args, strict=True)):
            if _differ(*pair):
                node.update_arg(position, _by_mode(gm, node, *pair))
                changed = True
        for name in node.kwargs:
            pair = node.kwargs[name], other.kwargs[name]
            if _differ(*pair):
                node.update_kwarg(name, _by_mode(gm, node, *pair))
                changed = True
    if changed:
        gm.recompile()


def _differ(evaluation: Any, training: Any) -> bool:
    """Return whether two arguments are different; nodes are not, for they were compared before."""
    return str(evaluation) != str(training)


def _by_mode(gm: GraphModule, node: Node, evaluation: Any, training: Any) -> Node:
    path = free_path(gm, f"{owner_path(node)}.mode".lstrip("."))
    module = ByMode(evaluation, training)
    add_module(gm, path, module.train(gm.training))
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(path)
    new.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    new.meta["val"] = evaluation
    return new


def _different_owners(evaluating: Graph, training: Graph) -> dict[str, Node]:
    """Return the paths of the modules whose forwards do not do the same in both graphs, each with a node of it."""
    first, second = _by_owner(evaluating), _by_owner(training)
    different: dict[str, Node] = {}
    for path in first.keys() | second.keys():
        ours, theirs = first.get(path, []), second.get(path, [])
        if [_step(node) for node in ours] != [_step(node) for node in theirs]:
            different[path] = _first_difference(theirs, ours)
    return different


def _first_difference(nodes: list[Node], others: list[Node]) -> Node:
    known = [_step(node) for node in others]
    return next((node for node in nodes if _step(node) not in known), (nodes or others)[0])


def _step(node: Node) -> tuple[Any, ...]:
    return node.op, node.target, len(node.all_input_nodes)


def _by_owner(graph: Graph) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "get_attr"):
            found.setdefault("" if node.op == "output" else owner_path(node), []).append(node)
    return found
