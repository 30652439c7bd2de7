"""Rewriter: the only hands that passes edit a graph with. Every edit, plan and refusal goes into the record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxq.errors import PassError
from fxq.graph.altered import why_altered
from fxq.graph.data_stage import DataStage
from fxq.graph.edges import hand_over, inherited_meta, last_of_kind, read_instead
from fxq.graph.kinds import module_of, produces_tensor
from fxq.graph.match import Edge, owner_path
from fxq.graph.modules import add_module, find_module, free_path, module_at, only_holds, set_tensor
from fxq.graph.plan_rewriter import PlanRewriter
from fxq.graph.settings import Settings
from fxq.graph.value_rewriter import ValueRewriter
from fxq.graph.written_out import WrittenOut
from fxq.record import Record
from fxq.stage import Stage


class Rewriter(PlanRewriter, ValueRewriter):
    """Edits one graph on behalf of one pass.

    Args:
        gm: the graph module; edited in place.
        settings: what the run was asked for.
        record: where edits and reasons are written down.
        pass_name: whose hands these are.
        data_stage: what passes of the stage CALIBRATED have beside the graph; None for all others.
        stage: of the pass; those behind PLANNED plan nothing, for nobody would carry it out. None: not held to it.
    """

    def __init__(
        self,
        gm: GraphModule,
        settings: Settings,
        record: Record,
        pass_name: str,
        data_stage: DataStage | None = None,
        stage: Stage | None = None,
    ) -> None:
        super().__init__(gm, record, pass_name, data_stage)
        self.settings = settings
        self.stage = stage
        self._calls: dict[str, list[Node]] | None = None  # of each module path, once asked for

    def nodes(self, question: Callable[[Node], bool] | None = None) -> list[Node]:
        """Return the nodes for which ``question`` holds, in graph order; a snapshot, so edits are safe."""
        return [node for node in self.gm.graph.nodes if question is None or question(node)]

    def bypass(self, node: Node, why: str, source: Node | None = None) -> None:
        """Let the readers of ``node`` read ``source`` (its first input) instead, and erase it.

        Raises:
            PassError: it reads nothing, and no ``source`` is given; or it calls a module with hooks of the user's,
                which would be lost; so does all that replaces one.
        """
        self._check_unaltered(node)
        if source is None and not node.all_input_nodes:
            raise PassError(
                f"pass {self.pass_name!r} bypasses {node.name!r}, which reads nothing that its readers could read: "
                "give them a source"
            )
        self._note("edit", node, why)
        node.replace_all_uses_with(source or node.all_input_nodes[0])
        self._erase(node)

    def replace_by(self, node: Node, value: Any, why: str) -> None:
        """Let the readers of ``node`` read ``value`` instead, nodes in the structure of what it returns; erase it."""
        self._check_unaltered(node)
        self._note("edit", node, why)
        for reader in hand_over(node, value):
            self._erase_node(reader)
        self._erase(node)

    def replace_input(self, node: Node, old: Node, new: Node, why: str) -> None:
        """Let ``node`` read ``new`` wherever it reads ``old``."""
        self._note("edit", node, why)
        node.replace_input_with(old, new)

    def erase_unread(self, inserted: Sequence[Node]) -> None:
        """Erase those of the inserted nodes, in graph order, whose values nothing needs; noted with their edit."""
        for node in reversed(inserted):
            if not node.users:
                self._erase_node(node)

    def replace_module(self, path: str, module: nn.Module, why: str) -> None:
        """Put ``module`` where the module at ``path`` is; every call now calls it."""
        self._check_module_unaltered(path)
        before = module_at(self.gm, path)
        module.train(before.training)
        if self._data_stage is not None:
            self._data_stage.replaced.setdefault(path, before)
            self._data_stage.changed.append(path)
        add_module(self.gm, path, module)
        self._parameters = None
        for node in self._calls_by_path().get(path, [])[:1]:
            self._note("edit", node, why)

    def call_module_instead(self, node: Node, path: str, module: nn.Module, inputs: Sequence[Any], why: str) -> Node:
        """Replace ``node`` by a call of ``module``, which is put at ``path``, or beside it if that is taken.

        A container at ``path`` that holds nothing but the module's own parameters is the module's place.
        """
        found = find_module(self.gm, path)
        if found is not module:
            if not only_holds(found, module):
                path = free_path(self.gm, path)
            module.train(self.gm.training)
            add_module(self.gm, path, module)
            self._parameters = None
        with self.gm.graph.inserting_before(node):
            new = self._call_module(path, tuple(inputs))
        return self._replace(node, new, why)

    def call_instead(
        self, node: Node, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any], why: str
    ) -> Node:
        """Replace ``node`` by a call of ``function``; a string names a method of the first argument."""
        return self._replace(node, self._insert_call(node, function, args, kwargs), why)

    def write_out(self, node: Node, call: WrittenOut, why: str) -> list[Node]:
        """Replace a call by the operations that it consists of (``fxq.graph.written_out``); return them."""
        values: dict[Node, Any] = {}
        inserted: list[Node] = []
        for traced in call.graph.nodes:
            if traced.op == "placeholder":
                values[traced] = call.arguments[str(traced.target)]
            elif traced.op == "get_attr":
                path = free_path(self.gm, f"{owner_path(node)}.{node.name}_constant".lstrip("."))
                values[traced] = self.read_tensor(node, path, getattr(call.constants, str(traced.target)))
            elif traced.op == "output":
                self.replace_by(node, map_arg(traced.args[0], values.__getitem__), why)
            elif isinstance(given := values.get(traced.args[0]), tuple | list):  # an item of an argument
                values[traced] = given[traced.args[1]]
            else:
                args, kwargs = map_arg((traced.args, traced.kwargs), values.__getitem__)
                new = self.insert_call(node, traced.target, args, node, kwargs, traced.meta.get("val"))
                values[traced] = new
                inserted.append(new)
        return inserted

    def insert_call(
        self,
        before: Node,
        function: Callable[..., Any] | str,
        args: Sequence[Any],
        like: Node,
        kwargs: Mapping[str, Any] | None = None,
        value: Any = None,
    ) -> Node:
        """Insert a function call before a node: part of an edit noted elsewhere.

        Args:
            before: the node.
            function: a string names a method of the first argument.
            args, kwargs: its arguments.
            like: where it belongs: the node whose place in the model, and line in the source, it takes.
            value: what it computes, if known: a tensor with its shape and dtype.
        """
        new = self._insert_call(before, function, args, kwargs or {})
        new.meta = {**inherited_meta(like), "val": value}
        return new

    def copy_call(self, before: Node, node: Node, reads: Mapping[Node, Node], value: Any = None) -> Node:
        """Insert a copy of the call ``node`` before another: part of an edit noted elsewhere.

        Args:
            before: the node.
            node: what is copied.
            reads: what the copy reads in place of what ``node`` reads.
            value: what it computes, if known.
        """
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: reads.get(read, read))
        with self.gm.graph.inserting_before(before):
            if node.op == "call_module":
                new = self._call_module(str(node.target), args)
                new.kwargs = kwargs
            else:
                new = self.gm.graph.create_node(node.op, node.target, args, kwargs)
        new.meta = {**inherited_meta(node), "val": value}
        return new

    def read_tensor(self, before: Node, path: str, value: torch.Tensor) -> Node:
        """Store ``value`` as a buffer at ``path`` (once) and insert a node before ``before`` that reads it."""
        set_tensor(self.gm, path, value)
        with self.gm.graph.inserting_before(before):
            return self.gm.graph.create_node("get_attr", path)  # Graph.get_attr looks for what has just been stored

    def insert_module_on(self, edges: Sequence[Edge], path: str, module: nn.Module, why: str) -> Node:
        """Insert a call of ``module`` between one producer and the given readings of it.

        Args:
            edges: edges with the same producer.
            path: where the module is, or is to be put.
            module: called with the producer's output.
            why: the reason.

        Raises:
            PassError: there is no edge.
        """
        if not edges:
            raise PassError(f"pass {self.pass_name!r} inserts {path!r} on no edge: give it those of one producer")
        producer = edges[0].producer
        module.train(self.gm.training)
        if find_module(self.gm, path) is None:
            add_module(self.gm, path, module)
        with self.gm.graph.inserting_after(last_of_kind(producer)):
            new = self._call_module(path, (producer,))
        new.meta = inherited_meta(producer)
        for edge in edges:
            read_instead(edge, new)
        if self._data_stage is not None:
            self._data_stage.inserted.append(new.name)
            self._data_stage.changed.append(str(new.target))
        self._note("edit", new, why)
        return new

    def empty_module(self, path: str) -> None:
        """Put an empty module at ``path``, as a place for tensors; part of an edit that is noted elsewhere."""
        add_module(self.gm, path, nn.Module().train(self.gm.training))

    def tensor(self, node: Any) -> torch.Tensor:
        """Return the stored tensor that a get_attr node reads."""
        owner, _, name = str(node.target).rpartition(".")
        found: torch.Tensor = getattr(module_at(self.gm, owner), name)
        return found

    def erase(self, node: Node, why: str) -> None:
        """Erase a node that nothing reads."""
        if node.users:
            raise PassError(f"pass {self.pass_name!r} erases {node.name!r}, which {next(iter(node.users))} still reads")
        self._note("edit", node, why)
        self._erase_node(node)

    def edit(self, node: Node, why: str) -> None:
        """Note a change that was made to what ``node`` calls (its module's parameters or state)."""
        self._note("edit", node, why)

    def module(self, node: Node) -> Any:
        """Return the module that ``node`` calls; the pass has asked for its kind and knows its attributes."""
        return module_of(node)

    def _check_unaltered(self, node: Node) -> None:
        if node.op == "call_module":
            self._check_module_unaltered(str(node.target))

    def _check_module_unaltered(self, path: str) -> None:
        reason = why_altered(module_at(self.gm, path))
        if reason is not None:
            raise PassError(
                f"pass {self.pass_name!r} replaces or removes module {path!r}, which {reason}: that would be lost. "
                "Remove it first, or let the pass decline (fxq.graph.why_altered)"
            )

    def _insert_call(
        self, before: Node, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Node:
        op = "call_method" if isinstance(function, str) else "call_function"
        with self.gm.graph.inserting_before(before):
            new = self.gm.graph.create_node(op, function)
        # Not by create_node, which looks through all of them for symbolic numbers: half of its time.
        new.args = tuple(args)
        if kwargs:
            new.kwargs = dict(kwargs)
        return new

    def _replace(self, node: Node, new: Node, why: str) -> Node:
        self._check_unaltered(node)
        new.meta = {key: value for key, value in node.meta.items() if key != "is_wrapped"}  # see inherited_meta
        self._note("edit", node, why)
        node.replace_all_uses_with(new)
        self._erase(node)
        new.name = node.name  # rules, reports and error messages know the operation by this name
        return new

    def _erase(self, node: Node) -> None:
        """Erase a node, and the reads of stored tensors and of shapes that only it needed."""
        inputs = node.all_input_nodes
        self._erase_node(node)
        for source in inputs:
            is_question = source.op == "get_attr" or (source.op != "placeholder" and not produces_tensor(source))
            if is_question and not source.users:
                self._erase(source)

    def _calls_by_path(self) -> dict[str, list[Node]]:
        """Return the nodes that call each module: one look at the graph, then kept up to date by the edits."""
        if self._calls is None:
            self._calls = {}
            for node in self.nodes(lambda node: node.op == "call_module"):
                self._calls.setdefault(str(node.target), []).append(node)
        return self._calls

    def _call_module(self, path: str, inputs: tuple[Any, ...]) -> Node:
        new = self.gm.graph.create_node("call_module", path)  # Graph.call_module looks for what is known to be there
        new.args = inputs  # see _insert_call
        if self._calls is not None:
            self._calls.setdefault(path, []).append(new)
        return new

    def _erase_node(self, node: Node) -> None:
        self.gm.graph.erase_node(node)
        if self._calls is not None and node.op == "call_module":
            self._calls[str(node.target)].remove(node)
