"""What moves integers and computes none: reshapes, transposes, slices, concatenation, padding."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from fxq.graph.kinds import shape_of
from fxq.integer.grid import Grid, Term, wide_grid
from fxq.integer.writer import Writer, tensors_read
from fxq.registry import integer_form


@integer_form("reshape", "transpose", "slice")
class IntegerMove:
    """The same call, on the codes of what it reads."""

    keeps_grid = True

    def why_not(self, node: Node) -> str | None:
        """Return that it reads several tensors."""
        return None if len(tensors_read(node)) == 1 else "it reads several tensors"

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Move the codes of the input."""
        source = node.all_input_nodes[0]
        return writer.copy(node, {source: writer.codes(source, grid)}, grid.dtype)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Move integers of one step."""
        source = node.all_input_nodes[0]
        term = writer.single(source)
        return [Term(writer.copy(node, {source: term.node}, torch.int32), term.zero_point, term.scale, term.bound)]


@integer_form("cat")
class IntegerCat:
    """The codes of all parts, in one grid."""

    def why_not(self, node: Node) -> str | None:
        """Return None: all have one."""
        return None

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Concatenate the codes of the parts."""
        parts = {part: writer.codes(part, grid) for part in tensors_read(node)}
        return writer.copy(node, parts, grid.dtype)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Concatenate integers of one step."""
        parts = tensors_read(node)
        grid = wide_grid(max(sum(term.largest for term in writer.terms(part)) for part in parts), 24)
        return [
            grid.term(
                writer.copy(
                    node, {part: writer.requantize(writer.terms(part), grid, part) for part in parts}, grid.dtype
                )
            )
        ]


@integer_form("pad")
class IntegerPad:
    """Pads with the code of the value, or with codes of the input."""

    keeps_grid = True

    def why_not(self, node: Node) -> str | None:
        """Return that it does not pad by numbers."""
        if not isinstance(_argument(node, 1, "pad", None), tuple | list):
            return "it pads by sizes that are computed"
        is_constant = _argument(node, 2, "mode", "constant") == "constant"
        known = shape_of(node.all_input_nodes[0]) is not None
        return None if is_constant or known else "how it pads depends on the input: give prepare() example_inputs"

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Pad the codes of the input."""
        source = node.all_input_nodes[0]
        codes = writer.codes(source, grid)
        pad: Any = _argument(node, 1, "pad", ())
        mode = _argument(node, 2, "mode", "constant")
        if mode == "constant":
            value = float(_argument(node, 3, "value", None) or 0.0)
            code = int(grid.quantized(torch.tensor(value)))
            return writer.insert(functional.pad, (codes, list(pad), "constant", code), node, grid.dtype)
        shape = shape_of(source)
        assert shape is not None
        for axis in range(-1, -1 - len(pad) // 2, -1):
            before, behind = pad[-2 * axis - 2], pad[-2 * axis - 1]
            if before or behind:
                places = torch.arange(float(shape[axis])).reshape(1, 1, -1)
                codes = select(writer, node, codes, axis, functional.pad(places, (before, behind), mode=str(mode)))
        return codes


def select(writer: Writer, node: Node, codes: Node, axis: int, places: Tensor) -> Node:
    """Return what picks the codes at ``places`` along a dimension."""
    stored = writer.store(node, f"{writer.place(node)}.index", places.reshape(-1).to(torch.int64))
    return writer.insert(torch.index_select, (codes, axis, stored), node, None)


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
