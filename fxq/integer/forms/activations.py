"""Activations: a clamp narrows the range of codes of what it reads, any other is a table."""

import math

from torch import nn
from torch.fx import Node

from fxq.graph.kinds import kind, module_of
from fxq.integer.elementwise import as_table, as_term, is_of_one_tensor
from fxq.integer.grid import Grid, Term, wide_grid
from fxq.integer.writer import Writer
from fxq.kinds import ACTIVATIONS
from fxq.registry import integer_form

_CLAMPS = ("relu", "relu6", "clip")


@integer_form(*_CLAMPS)
class IntegerClamp:
    """The codes of what it reads, in a narrower range."""

    def why_not(self, node: Node) -> str | None:
        """Return None: all have one."""
        return None

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Return the codes of the input, without those outside of the bounds."""
        return writer.codes(node.all_input_nodes[0], grid.clamped(*_bounds(node)))

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return one term: int32 between the bounds."""
        terms = writer.terms(node.all_input_nodes[0])
        grid = wide_grid(sum(term.largest for term in terms), 24)
        return [grid.term(writer.requantize(terms, grid.clamped(*_bounds(node)), node))]


@integer_form(*sorted(ACTIVATIONS.difference(_CLAMPS)))
class IntegerTable:
    """A table of 256 codes; a sum that no quantizer reads is rounded to 16 bits first, and its table is longer."""

    def why_not(self, node: Node) -> str | None:
        """Return that it computes something else for each channel."""
        return (
            None if is_of_one_tensor(node) else "it has a parameter for each channel, and a table is for one function"
        )

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Look the codes up."""
        return as_table(writer, node, grid)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Look up 16 bits."""
        return [as_term(writer, node)]


def _bounds(node: Node) -> tuple[float | None, float | None]:
    found = kind(node)
    if found == "clip":
        module = module_of(node)
        assert isinstance(module, nn.Hardtanh)
        return tuple(None if math.isinf(one) else one for one in (module.min_val, module.max_val))  # type: ignore[return-value]
    return 0.0, 6.0 if found == "relu6" else None
