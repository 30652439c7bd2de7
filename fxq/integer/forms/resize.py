"""Resizes: the nearest picks codes; a linear one adds neighbours, weighted in steps of 2^-n."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from fxq.errors import GraphError
from fxq.graph.kinds import module_of, shape_of
from fxq.integer.forms.moves import select
from fxq.integer.grid import Grid, Term
from fxq.integer.matrices import along_each, as_average, as_rounded, response
from fxq.integer.writer import Writer, described
from fxq.registry import integer_form

_OPTIONS = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
_LINEAR = ("linear", "bilinear", "trilinear")
_NEAREST = ("nearest", "nearest-exact")
# Of the weights, for each number of dimensions; codes times those of two dimensions fit int32.
_WEIGHT_BITS = {1: 14, 2: 11, 3: 11}


@integer_form("resize")
class IntegerResize:
    """For the sizes of the example inputs."""

    def why_not(self, node: Node) -> str | None:
        """Return that the mode has no integer form, or that sizes are not known."""
        options = _options(node)
        mode = options["mode"]
        if mode not in (*_NEAREST, *_LINEAR, "area") or options.get("antialias"):
            return f"mode {mode!r}{' with antialias' if options.get('antialias') else ''} adds up weights of both signs"
        known = shape_of(node.all_input_nodes[0]) is not None and shape_of(node) is not None
        return None if known else "its weights depend on the input: give prepare() example_inputs"

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Pick codes, or requantize sums."""
        if _options(node)["mode"] not in _NEAREST:
            return writer.requantize(self.terms(writer, node), grid, node)
        source = node.all_input_nodes[0]
        return self._picked(writer, node, writer.codes(source, grid))

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return the sums."""
        options = _options(node)
        if options["mode"] in _NEAREST:
            term = writer.single(node.all_input_nodes[0])
            return [Term(self._picked(writer, node, term.node), term.zero_point, term.scale, term.bound)]
        matrices = [
            (axis, *(as_average(matrix) if options["mode"] == "area" else as_rounded(matrix, _WEIGHT_BITS[dims])))
            for axis, dims, matrix in _matrices(node)
        ]
        return [along_each(writer, node, matrices)]

    def _picked(self, writer: Writer, node: Node, codes: Node) -> Node:
        for axis, _, matrix in _matrices(node):
            codes = select(writer, node, codes, axis, matrix.argmax(1))
        return codes


def _options(node: Node) -> dict[str, Any]:
    if node.op == "call_module":
        module: Any = module_of(node)
        found = {name: getattr(module, name, None) for name in _OPTIONS}
    else:
        found = {**dict(zip(_OPTIONS, node.args[1:], strict=False)), **node.kwargs}
    return {"size": None, "scale_factor": None, **found, "mode": found.get("mode") or "nearest"}


def _matrices(node: Node) -> list[tuple[int, int, Tensor]]:
    """Return, for each spatial dimension: it, their number, and what the resize does along it, (out, in)."""
    shape, out, options = shape_of(node.all_input_nodes[0]), shape_of(node), _options(node)
    assert shape is not None
    assert out is not None
    dims = len(shape) - 2
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(options["mode"], options["mode"])
    found = []
    for axis in range(-dims, 0):
        factor = options["scale_factor"]
        factor = factor[axis] if isinstance(factor, tuple | list) else factor
        # Where torch resizes by a factor, the factor counts and not the sizes, unless it is to be computed anew.
        asked: dict[str, Any] = {"size": out[axis]} if factor is None else {"scale_factor": float(factor)}
        asked |= {"mode": mode, "recompute_scale_factor": options.get("recompute_scale_factor")}
        if mode == "linear":
            asked["align_corners"] = options.get("align_corners")
        if "size" in asked:
            del asked["recompute_scale_factor"]
        matrix = response(shape[axis], partial(functional.interpolate, **asked))
        if len(matrix) != out[axis]:
            raise GraphError(f"to_integer: {described(node)} resizes to sizes that its options do not tell")
        found.append((axis, dims, matrix))
    return found
