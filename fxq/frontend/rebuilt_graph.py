"""An exported program as a torch.fx graph on the model's own modules, in the words of torch."""

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from fxq.errors import TraceError
from fxq.frontend.aten_forms import DROPPED, RETURN_MORE, Form, torch_form
from fxq.frontend.whole_calls import LeftOut, WholeCalls
from fxq.graph.evaluation import Evaluation
from fxq.graph.source_lines import line_of, user_lines

_META = ("nn_module_stack", "stack_trace")
# They run a part of the model under a setting, the last that is no tensor; here settings are as at inference.
_SETTINGS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})


@dataclass(frozen=True)
class _Stored:
    """A parameter, buffer or constant, which becomes a node where it is read first."""

    path: str


class RebuiltGraph:
    """Builds ``graph``.

    Args:
        model: what was exported; constants of the program become buffers of it.
        program: what torch.export made of it.
        calls: of the modules that stayed whole.
        bound: the example inputs by parameter of forward.

    Raises:
        TraceError: the program holds what a graph cannot hold.
    """

    def __init__(
        self, model: nn.Module, program: ExportedProgram, calls: WholeCalls, bound: inspect.BoundArguments
    ) -> None:
        self.graph = Graph()
        self._model = model
        self._program = program
        self._calls = calls
        self._evaluation = Evaluation()
        self._parameters = self._placed_parameters(bound)
        self._items: dict[tuple[Node, Any], Node] = {}
        self._stored: dict[str, Node] = {}
        returned = self._copied(program.graph, program.graph_module, self._inputs(bound))
        structure = program.call_spec.out_spec
        assert structure is not None
        self.graph.output(_plain(iter(returned), structure))

    @property
    def result_structure(self) -> pytree.TreeSpec | None:
        """What makes the model's own result of what the graph returns; None where they are the same."""
        structure = self._program.call_spec.out_spec
        return None if structure is None or _is_built_in(structure) else structure

    def _placed_parameters(self, bound: inspect.BoundArguments) -> dict[str, Node]:
        placed: dict[str, Node] = {}
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            is_starred = parameter.kind is parameter.VAR_POSITIONAL
            placed[name] = self.graph.placeholder(f"*{name}" if is_starred else name, default_value=parameter.default)
            value = bound.arguments.get(name, () if is_starred else parameter.default)
            if value is not parameter.empty:
                placed[name].meta["val"] = self._evaluation.as_fake(value)
        return placed

    def _inputs(self, bound: inspect.BoundArguments) -> dict[Node, Any]:
        """Return what the placeholders of the program stand for."""
        signature = self._program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {name: self._constant(path) for name, path in signature.inputs_to_lifted_tensor_constants.items()}
        leaves, _ = pytree.tree_flatten_with_path(dict(bound.arguments))
        given = dict(
            zip((node.name for node in self._program.graph.nodes if _is_input(node, signature)), leaves, strict=True)
        )
        found: dict[Node, Any] = {}
        for node in self._program.graph.find_nodes(op="placeholder"):
            if node.name in given:
                path, value = given[node.name]
                found[node] = self._item_of_input(path) if isinstance(value, Tensor) else value
            elif node.name in stored or node.name in constants:
                found[node] = _Stored(stored.get(node.name) or constants[node.name])
            else:
                raise TraceError(f"the model holds {node.name!r}, an object that a graph cannot hold")
        return found

    def _constant(self, name: str) -> str:
        """Keep a tensor that the model's Python made, or held, beside its parameters; return its path."""
        value = self._program.constants[name]
        path, index = f"_tensor_constant{len(self._model._buffers)}", 0
        while hasattr(self._model, path):
            index += 1
            path = f"_tensor_constant{index}"
        self._model.register_buffer(path, value.detach())
        return path

    def _item_of_input(self, path: Sequence[Any]) -> Node:
        first, *keys = map(_key, path)
        return self._item(self._parameters[first], keys)

    def _item(self, node: Node, keys: Sequence[Any]) -> Node:
        for key in keys:
            if (node, key) not in self._items:
                meta = {name: node.meta[name] for name in _META if name in node.meta}
                self._items[node, key] = self._add(Form("call_function", operator.getitem, (node, key), {}), meta)
            node = self._items[node, key]
        return node

    def _copied(self, graph: Graph, owner: GraphModule, values: dict[Node, Any]) -> Any:
        """Add the nodes of ``graph``; return what it returns."""
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "get_attr":
                values[node] = getattr(owner, str(node.target))  # the graph of a higher-order operator
            elif node.op == "output":
                return self._mapped(node.args[0], values)
            else:
                values[node] = self._call(node, values)
        raise AssertionError("a graph ends with its output")

    def _mapped(self, arguments: Any, values: Mapping[Node, Any]) -> Any:
        def value_of(argument: Any) -> Any:
            value = values[argument] if isinstance(argument, Node) else argument
            return self._read(value.path) if isinstance(value, _Stored) else value

        return map_aggregate(arguments, value_of)

    def _read(self, path: str) -> Node:
        if path not in self._stored:
            self._stored[path] = self._add(Form("get_attr", path, (), {}), {})
        return self._stored[path]

    def _call(self, node: Node, values: dict[Node, Any]) -> Any:
        args, kwargs = self._mapped(node.args, values), self._mapped(node.kwargs, values)
        target, meta = node.target, _meta(node)
        if self._calls.made(target):
            return self._whole_call(args, meta)
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if isinstance(target, HigherOrderOperator):
            return self._inlined(node, args)
        if str(getattr(target, "__module__", "")).startswith("torch._functorch"):
            raise TraceError(
                f"the model's Python calls a transform of torch.func (vmap, grad) in {line_of(node)}, which a graph "
                "cannot hold; move it into a submodule and name that in recipe.replace(leaf_modules=...)"
            )
        if not isinstance(target, OpOverload):
            return self._add(Form("call_function", target, args, kwargs), meta)
        name = target._schema.name.removeprefix("aten::")
        if name in DROPPED:
            return None
        original = Form("call_function", target, args, kwargs)
        form = torch_form(target, args, kwargs)
        if form.op == "input":
            return form.args[0]
        if name not in RETURN_MORE:
            return self._checked(form, node.meta.get("val"), meta) or self._add(original, meta)
        reads_more = any(user.target is not operator.getitem or (user.args[1] and user.users) for user in node.users)
        first = None if reads_more else self._checked(form, node.meta["val"][0], meta)
        return self._add(original, meta) if first is None else [first, *node.meta["val"][1:]]

    def _checked(self, form: Form, expected: Any, meta: dict[str, Any]) -> Node | None:
        """Add ``form`` if it computes what is ``expected``, as far as shapes tell; else return None."""
        try:
            added = self._add(form, meta)
        except Exception:  # whatever a function raises that takes other arguments
            return None
        if _is_alike(added.meta.get("val"), expected):
            return added
        self.graph.erase_node(added)
        return None

    def _add(self, form: Form, meta: dict[str, Any]) -> Node:
        node = self.graph.create_node(form.op, form.target, form.args, form.kwargs)
        node.meta.update(meta)
        try:
            self._evaluation.evaluate(node, self._model)
        except BaseException:
            self.graph.erase_node(node)
            raise
        return node

    def _whole_call(self, args: tuple[Any, ...], meta: dict[str, Any]) -> list[Node]:
        """Call a module; return its tensors in order, as the operator does that stood for it."""
        tensors, sizes, index = args
        call = self._calls.calls[index]
        arguments, keywords = call.with_values(tensors, sizes)
        node = self._add(Form("call_module", call.path, arguments, keywords), meta)
        assert call.result_structure is not None
        leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(call.results, call.result_structure))
        return [self._item(node, [*map(_key, path)]) for path, leaf in leaves if leaf is LeftOut.TENSOR]

    def _inlined(self, node: Node, args: tuple[Any, ...]) -> Any:
        name = str(getattr(node.target, "__name__", node.target))
        position = next((place for place, value in enumerate(args) if isinstance(value, GraphModule)), None)
        if name not in _SETTINGS or position is None:
            line = user_lines(node.meta.get("stack_trace") or "").strip().splitlines()
            raise TraceError(
                f"the model's Python branches or loops on data ({name}) in {' '.join(map(str.strip, line[-2:]))}, "
                "which a graph of quantizers cannot hold"
            )
        body = args[position]
        inputs = body.graph.find_nodes(op="placeholder")
        return self._copied(body.graph, body, dict(zip(inputs, args[position + 1 :], strict=True)))


def _is_input(node: Node, signature: Any) -> bool:
    return node.op == "placeholder" and any(
        spec.kind.name == "USER_INPUT" and spec.arg.name == node.name for spec in signature.input_specs
    )


def _key(entry: Any) -> Any:
    """Return the key or index of an entry of a path that torch.utils._pytree gives."""
    if isinstance(entry, pytree.SequenceKey):
        return entry.idx
    if isinstance(entry, pytree.MappingKey):
        return entry.key
    raise TraceError(f"an input or result holds {entry!r}, and a graph holds tuples, lists and dicts")


def _meta(node: Node) -> dict[str, Any]:
    """Return where a node of the program comes from: modules by path, lines of the model's own code."""
    found: dict[str, Any] = {}
    stack = node.meta.get("nn_module_stack") or {}
    modules = {key: entry for key, entry in stack.items() if entry[0] and not str(key).startswith("_empty_")}
    if modules:
        found["nn_module_stack"] = modules
    lines = user_lines(node.meta.get("stack_trace") or "")
    if lines:
        found["stack_trace"] = lines
    return found


def _is_alike(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return found.dtype == expected.dtype and found.dim() == expected.dim()
    return isinstance(found, Tensor) == isinstance(expected, Tensor)


def _plain(leaves: Any, structure: pytree.TreeSpec) -> Any:
    """Return ``leaves`` in tuples, lists and dicts: the type of a mapping is put back where the graph returns."""
    if structure.is_leaf():
        return next(leaves)
    parts = [_plain(leaves, child) for child in structure.children()]
    if isinstance(structure.type, type) and issubclass(structure.type, Mapping):
        return dict(zip(_keys(structure), parts, strict=True))
    return parts if structure.type is list else tuple(parts)


def _is_built_in(structure: pytree.TreeSpec) -> bool:
    return structure.is_leaf() or (
        structure.type in (tuple, list, dict) and all(map(_is_built_in, structure.children()))
    )


def _keys(structure: pytree.TreeSpec) -> Any:
    return structure.context if isinstance(structure.context, list | tuple) else range(structure.num_children)
