"""What a model's Python decided by a size while it was traced, and whether a size that is to stay open decides it.

``if x.shape[2] > 32``, ``range(x.shape[1])`` and ``int(...)`` are answered with the sizes of the example inputs, and
the graph holds the answer. Which sizes an answer comes from is found by running the traced graph once more, on fake
tensors whose open sizes are symbols: an answer that still depends on a symbol holds for the example inputs only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from fxq.graph.modules import deep_copy

# What a traced graph module keeps its SizeDecisions under, in its ``meta``.
KEY = "size_decisions"


@dataclass(frozen=True)
class Decision:
    """One answer that Python got.

    Args:
        node: what was asked about.
        question: "len", "truth" or "number".
        path: of the module whose forward asked; "" for the model itself.
        line: file, line and text of the code that asked.
    """

    node: Node
    question: str
    path: str
    line: str


@dataclass(frozen=True)
class OpenRange:
    """A dimension that is to stay open, ``times * name + plus``, with what ``name`` is now, at least and at most."""

    name: str
    size: int
    least: int = 1
    most: int | None = None
    times: int = 1
    plus: int = 0


@dataclass(frozen=True)
class Dependence:
    """A decision that open sizes decide: which, by name, and the expression that was asked for its answer."""

    decision: Decision
    names: tuple[str, ...]
    expression: str


class SizeDecisions:
    """The part of a traced graph that its decisions by sizes come from, on tensors without data."""

    @classmethod
    def of(cls, model: nn.Module, graph: Graph, decisions: Sequence[Decision]) -> "SizeDecisions | None":
        """Return those that a size may decide; None without any."""
        distinct = {(one.node, one.question, one.line): one for one in decisions if _reads_sizes(one.node)}
        return cls(model, graph, tuple(distinct.values())) if distinct else None

    def __init__(self, model: nn.Module, graph: Graph, decisions: Sequence[Decision]) -> None:
        kept, copied = Graph(), dict[Node, Node]()
        wanted = _ancestors([decision.node for decision in decisions])
        for node in graph.nodes:
            if node in wanted or node.op == "placeholder":
                copied[node] = kept.node_copy(node, copied.__getitem__)
        kept.output(None)
        self.decisions = tuple(replace(one, node=copied[one.node]) for one in decisions)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        whole = GraphModule(model, kept)
        stored = [*whole.parameters(), *whole.buffers()]
        self._run = _Run(deep_copy(whole, {id(tensor): self._fake(tensor.detach()) for tensor in stored}))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SizeDecisions":
        return self  # nobody changes it

    def depend_on(
        self, inputs: tuple[Any, ...], opened: Sequence[Mapping[int, OpenRange]]
    ) -> tuple[tuple[Dependence, ...], str]:
        """Return the decisions that an open size would change, and why not all could be judged, "" if they were.

        Args:
            inputs: positional inputs.
            opened: of each tensor in ``inputs``, in order, its open dimensions; sizes of one name are equal.
        """
        symbols = _Symbols()
        remaining = iter(opened)

        def opened_copy(tensor: Tensor) -> Tensor:
            dims = next(remaining)
            shape = [symbols.size(dims[axis]) if axis in dims else size for axis, size in enumerate(tensor.shape)]
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

        failure = ""
        with self._mode, torch.no_grad():
            fakes = pytree.tree_map_only(Tensor, opened_copy, inputs)
            try:
                self._run.run(*fakes)
            except Exception as error:  # the model's own functions run
                failure = f"at '{self._run.newest}': {str(error).strip().splitlines()[0]}"
            found = [self._judge(decision, symbols.names) for decision in self.decisions]
        return tuple(one for one in found if one is not None), failure

    def _fake(self, tensor: Tensor) -> Tensor:
        return self._mode.from_tensor(tensor, static_shapes=True)

    def _judge(self, decision: Decision, names: Mapping[str, str]) -> Dependence | None:
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # noqa: PLC0415 - see _Symbols

        value = self._run.values.get(decision.node.name)
        if decision.question == "len":
            value = value.shape[0] if isinstance(value, Tensor) and value.dim() else None
        if decision.question == "truth" and isinstance(value, torch.SymInt):
            value = value != 0
        if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return None
        if isinstance(value, torch.SymBool) and (
            statically_known_true(value) or statically_known_true(torch.sym_not(value))
        ):
            return None
        expression = value.node.expr
        symbols = [str(symbol) for symbol in expression.free_symbols]
        if not symbols:
            return None
        text = re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), str(expression))
        return Dependence(decision, tuple(sorted({names.get(symbol, symbol) for symbol in symbols})), text)


class _Symbols:
    """Makes a symbol for each open size, with its range."""

    def __init__(self) -> None:
        # Takes as long to import as all of fxq, and few models decide by sizes.
        from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: PLC0415

        self.names: dict[str, str] = {}
        self._environment = ShapeEnv(duck_shape=False)
        self._sizes: dict[str, Any] = {}

    def size(self, one: OpenRange) -> Any:
        """Return the symbolic size of that name."""
        from torch._dynamo.source import ConstantSource  # noqa: PLC0415
        from torch.fx.experimental.symbolic_shapes import DimDynamic, StrictMinMaxConstraint  # noqa: PLC0415
        from torch.utils._sympy.numbers import int_oo  # noqa: PLC0415
        from torch.utils._sympy.value_ranges import ValueRanges  # noqa: PLC0415

        if one.name not in self._sizes:
            source = ConstantSource(one.name)
            bounds = ValueRanges(one.least, int_oo if one.most is None else one.most)
            symbol = self._environment.create_symbol(
                one.size,
                source,
                DimDynamic.DYNAMIC,
                StrictMinMaxConstraint(vr=bounds, warn_only=False),
                do_not_specialize_zero_one=True,
            )
            self.names[str(symbol)] = one.name
            self._sizes[one.name] = self._environment.create_symintnode(symbol, hint=one.size, source=source)
        return one.times * self._sizes[one.name] + one.plus


class _Run(Interpreter):
    """Runs all nodes and keeps what they compute."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}  # by the name of the node
        self.newest: Node | None = None

    def run(self, *args: Any, **_: Any) -> Any:
        """Run on positional inputs."""
        self.values = {}
        return super().run(*args)

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        self.newest = n
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def _reads_sizes(node: Node) -> bool:
    return any(isinstance(one.meta.get("val"), Tensor) for one in _ancestors([node]))


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    found, waiting = set(nodes), list(nodes)
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in found]
        found.update(new)
        waiting += new
    return found
