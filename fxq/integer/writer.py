"""Writer: walks back from a quantize to what was dequantized, and writes what computes its codes from integers.

A quantize is pushed upwards: the codes of a ReLU are the codes of its input in a narrower range, those of a flatten are
the flattened codes. At a sum (a convolution, an addition, an average) it becomes a requantize, which multiplies each
term by its fixed-point ratio of steps, adds, and rounds once. What computes each element from one element of an 8-bit
tensor is a table, filled by running the operations themselves on all 256 codes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxq.errors import FxqError, GraphError, PassError
from fxq.graph import Rewriter, free_path, kind, module_path
from fxq.graph.kinds import produces_values
from fxq.graph.source_lines import line_of
from fxq.integer.fixed_point import fixed_point
from fxq.integer.grid import Grid, Term, double, wide_grid
from fxq.quant import DEQUANTIZE
from fxq.quant.ops.requantize import LOOKUP, REQUANTIZE
from fxq.registry import find_integer_form, kinds_with_integer_form

# The layers of a lowered graph are functions.
_LAYERS: Mapping[Any, str] = {
    **dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), "conv"),
    **dict.fromkeys(
        (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d), "conv_transpose"
    ),
    functional.linear: "linear",
}
_WIDE_BITS = 24


def kind_of(node: Node) -> str:
    """Return the kind of a node of a lowered graph."""
    return _LAYERS.get(node.target) or kind(node)


class Writer:
    """Writes integer forms; remembers what was written.

    Args:
        rw: edits the graph.
        grids: of each dequantize of an activation.
    """

    def __init__(self, rw: Rewriter, grids: Mapping[Node, Grid]) -> None:
        self.rw = rw
        self.grids = grids
        self.before: Node  # where nodes are inserted now
        self.alike: dict[Node, Node] = {}  # of each float value, integers of its shape
        self._codes: dict[tuple[Node, Grid], Node] = {}
        self._terms: dict[Node, tuple[Term, ...]] = {}

    def codes(self, node: Node, grid: Grid) -> Node:
        """Return what computes the codes, in ``grid``, of the value of ``node``.

        Raises:
            GraphError: it, or what it reads, has no integer form.
        """
        if (node, grid) not in self._codes:
            found = self._given(node, grid) if node in self.grids else self._written(node, "codes", grid)
            if not isinstance(found, Node):
                raise _misled(self._form(node), "codes", node, f"returned {found!r}, and not the node that it inserted")
            self._codes[node, grid] = found
            self.alike.setdefault(node, found)
        return self._codes[node, grid]

    def terms(self, node: Node) -> tuple[Term, ...]:
        """Return integers whose sum is the value of ``node``.

        Raises:
            GraphError: it has no integer form, or none as a sum.
        """
        if node not in self._terms:
            grid = self.grids.get(node)
            if grid is not None:
                found = (Term(_source(node), grid.zero_point, double(grid.scale), grid.bound),)
            else:
                form = self._form(node)
                if not hasattr(form, "terms"):
                    raise GraphError(
                        f"to_integer: {described(node)} is read by what adds up integers, and no quantizer makes "
                        "integers of its result; let the recipe quantize its output, as 'onnxruntime' does"
                    )
                found = tuple(self._written(node, "terms"))
            self._terms[node] = found
            if found:
                self.alike.setdefault(node, found[0].node)
        return self._terms[node]

    def single(self, node: Node, bits: int = _WIDE_BITS) -> Term:
        """Return integers with one step, whose magnitudes are below 2^bits: codes, or int32 of a step found for it."""
        terms = self.terms(node)
        if len(terms) == 1 and not terms[0].scale.dim():
            return self.fitting(terms[0], bits, node)
        grid = wide_grid(sum(term.largest for term in terms), bits)
        return grid.term(self.requantize(terms, grid, node))

    def fitting(self, term: Term, bits: int, node: Node) -> Term:
        """Return ``term``, of the value of ``node``, with larger steps where its magnitudes reach 2^bits."""
        if bool(term.bound < 2**bits):
            return term
        grid = wide_grid(term.largest, bits)
        return grid.term(self.requantize([term], grid, node))

    def own_grid(self, node: Node) -> Grid | None:
        """Return the grid of the codes that ``node`` picks from and moves about, None where it computes others."""
        while node not in self.grids:
            form = find_integer_form(kind_of(node))
            if not getattr(form, "keeps_grid", False):
                return None
            node = node.all_input_nodes[0]
        return self.grids[node]

    def requantize(self, terms: Sequence[Term], grid: Grid, node: Node) -> Node:
        """Return what computes the codes of a sum, the value of ``node``, with one rounding."""
        axes = {term.axis for term in terms if term.axis is not None}
        if len(axes) > 1:
            raise GraphError(f"to_integer: {described(node)} adds tensors with steps along two dimensions")
        ratios = [term.scale / grid.scale for term in terms]
        multipliers, shift = fixed_point(ratios, [term.bound for term in terms], f"to_integer: {described(node)}")
        place = self.place(node)
        nodes = [
            self.store(node, f"{place}.multiplier{f'_{index}' if index else ''}", one)
            for index, one in enumerate(multipliers)
        ]
        args = (
            [term.node for term in terms],
            [term.zero_point for term in terms],
            nodes,
            self.store(node, f"{place}.shift", shift),
            axes.pop() if axes else None,
            grid.zero_point, grid.lo, grid.hi, grid.dtype,
        )  # fmt: skip
        return self.insert(REQUANTIZE, args, node, grid.dtype)

    def table(self, codes: Node, source: Grid, node: Node, grid: Grid, function: Callable[[Tensor], Tensor]) -> Node:
        """Return what looks up the codes, in ``grid``, of a function of each element: the value of ``node``.

        Args:
            codes: computes the codes that are looked up.
            source: their grid.
            node: the float operation.
            grid: of the result.
            function: of float32 values, element by element.
        """
        with torch.no_grad():
            entries = grid.quantized(function(source.values()))
        return self.lookup(codes, source, entries, node)

    def lookup(self, codes: Node, source: Grid, entries: Tensor, node: Node) -> Node:
        """Return what looks up ``entries``, one for each code of the grid ``source``: the value of ``node``."""
        stored = self.store(node, f"{self.place(node)}.table", entries)
        return self.insert(LOOKUP, (codes, stored, source.first), node, entries.dtype)

    def insert(self, function: Any, args: Sequence[Any], like: Node, dtype: torch.dtype | None) -> Node:
        """Insert a call before the quantize that is being written.

        Args:
            function: the operator.
            args: its arguments.
            like: the float node that it stands for, whose shape it has, if ``dtype`` is given.
            dtype: of its result; None where the shape is another.
        """
        value = None if dtype is None else in_dtype(like.meta.get("val"), dtype)
        return self.rw.insert_call(self.before, function, args, like, value=value)

    def copy(self, node: Node, reads: Mapping[Node, Node], dtype: torch.dtype) -> Node:
        """Insert a copy of a call that moves data, on integers."""
        return self.rw.copy_call(self.before, node, reads, in_dtype(node.meta.get("val"), dtype))

    def store(self, node: Node, path: str, tensor: Tensor) -> Node:
        """Store a tensor of what stands for ``node`` at ``path`` or beside it; return what reads it."""
        device = next((one.device for one in self.rw.gm.buffers()), torch.device("cpu"))
        return self.rw.read_tensor(self.before, free_path(self.rw.gm, path), tensor.to(device))

    def constant(self, node: Node, values: Tensor, bits: int) -> Term:
        """Return float64 values, part of what ``node`` computes, as stored integers below 2^bits."""
        bound = 2**bits - 1
        step = float(values.abs().max()) / bound or 1.0
        stored = self.store(node, f"{self.place(node)}.constant", torch.round(values / step).to(torch.int32))
        return Term(stored, 0, double(step), double(bound))

    def place(self, node: Node) -> str:
        """Return where the tensors of what stands for ``node`` belong."""
        weight = node.args[1] if node.target in _LAYERS else None
        if isinstance(weight, Node) and weight.all_input_nodes:
            return str(weight.all_input_nodes[0].target).rpartition(".")[0]
        if node.target is DEQUANTIZE:
            return str(node.all_input_nodes[1].target).rpartition(".")[0]
        return f"{module_path(node) if node.op == 'call_module' else node.name}_integer"

    def _given(self, node: Node, grid: Grid) -> Node:
        own = self.grids[node]
        if (own.scale, own.zero_point, own.dtype) == (grid.scale, grid.zero_point, grid.dtype) and (
            grid.lo <= own.lo and own.hi <= grid.hi
        ):
            return _source(node)
        return self.table(_source(node), own, node, grid, lambda values: values)

    def _written(self, node: Node, method: str, *arguments: Any) -> Any:
        """Let the form of ``node`` write it. A plugin's may fail in any way, sys.exit too: say which one it was."""
        form = self._form(node)
        try:
            return getattr(form, method)(self, node, *arguments)
        except (FxqError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _misled(form, method, node, f"failed: {type(error).__name__}: {error}") from error

    def _form(self, node: Node) -> Any:
        found = kind_of(node)
        form = find_integer_form(found)
        reason = None
        if form is not None:
            reason = form.why_not(node)
            if reason is None:
                return form
        elif node.op == "placeholder":
            reason = "it is an input of the model, which no quantizer makes integers of"
        elif node.op == "get_attr":
            reason = "it is stored in float"
        elif node.target is DEQUANTIZE:
            reason = "it is a stored tensor"
        raise GraphError(
            f"to_integer: {described(node)} computes in float between quantizers"
            f"{f': {reason}' if reason else f', and {found!r} has no integer form'}. Integer forms have "
            f"{', '.join(kinds_with_integer_form())}; fxq.integer_form adds one. What a recipe leaves in float can "
            "only stand before the first quantizer or behind the last"
        )


def described(node: Node) -> str:
    """Return a node in words: its name, its module, and the line of the model's code."""
    return f"node {node.name!r} ({module_path(node) or 'the model itself'}; {line_of(node)})"


def _misled(form: Any, method: str, node: Node, what: str) -> PassError:
    kind = type(form)
    return PassError(f"to_integer: {kind.__module__}.{kind.__qualname__}.{method} of {described(node)} {what}")


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Return a traced value, with its shape, in another dtype."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(dtype), value)


def tensors_read(node: Node) -> list[Node]:
    """Return the nodes whose values ``node`` reads, sizes and stored tensors left out."""
    return [read for read in node.all_input_nodes if read.op != "get_attr" and produces_values(read)]


def _source(dequantize: Node) -> Node:
    source = dequantize.args[0]
    assert isinstance(source, Node)
    return source
