"""Max pools: the largest code in a window is the code of the largest value."""

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxq.graph.kinds import module_of, shape_of
from fxq.integer.grid import Grid, Term
from fxq.integer.writer import Writer
from fxq.quant.ops.integer_math import INTEGER_MAX_POOL
from fxq.registry import integer_form

_POOLS: dict[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
_ADAPTIVE: dict[type[nn.Module], int] = {nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3}


@integer_form("max_pool")
class IntegerMaxPool:
    """Pools codes; windows of an adaptive pool that are not alike are copied side by side first."""

    keeps_grid = True

    def why_not(self, node: Node) -> str | None:
        """Return that it gives indices too, or is no module, or why an adaptive pool has no windows."""
        if node.op != "call_module":
            return "it is called as a function that fxq does not take for a module"
        module: Any = module_of(node)
        if module.return_indices:
            return "it returns indices"
        is_adaptive = isinstance(module, tuple(_ADAPTIVE))
        return (
            "its windows depend on the input: give prepare() example_inputs"
            if is_adaptive and not _sizes(node)
            else None
        )

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Pool the codes of the input."""
        return self._pooled(writer, node, writer.codes(node.all_input_nodes[0], grid), grid.dtype)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Pool integers of one step."""
        term = writer.single(node.all_input_nodes[0])
        return [Term(self._pooled(writer, node, term.node, torch.int32), term.zero_point, term.scale, term.bound)]

    def _pooled(self, writer: Writer, node: Node, codes: Node, dtype: torch.dtype) -> Node:
        module: Any = module_of(node)
        dims = next(count for type_, count in {**_POOLS, **_ADAPTIVE}.items() if isinstance(module, type_))
        if isinstance(module, tuple(_ADAPTIVE)):
            sizes = _sizes(node)
            kernel = []
            for axis, (size, out) in enumerate(sizes, start=-dims):
                starts = [row * size // out for row in range(out)]
                ends = [-(-(row + 1) * size // out) for row in range(out)]
                longest = max(end - start for start, end in zip(starts, ends, strict=True))
                kernel.append(longest)
                if size % out:
                    index = [
                        min(start + step, end - 1)
                        for start, end in zip(starts, ends, strict=True)
                        for step in range(longest)
                    ]
                    stored = writer.store(node, f"{writer.place(node)}.index", torch.tensor(index))
                    codes = writer.insert(torch.index_select, (codes, axis, stored), node, None)
            args: tuple[Any, ...] = (codes, kernel, kernel, [0] * dims, [1] * dims, False)
        else:
            options = (module.kernel_size, module.stride, module.padding, module.dilation)
            args = (codes, *([one] * dims if isinstance(one, int) else list(one) for one in options), module.ceil_mode)
        return writer.insert(INTEGER_MAX_POOL, args, node, dtype)


def _sizes(node: Node) -> list[tuple[int, int]]:
    """Return the size of the input and of the output in each spatial dimension; nothing where they are not known."""
    before, behind = shape_of(node.all_input_nodes[0]), shape_of(node)
    dims = next(count for type_, count in _ADAPTIVE.items() if isinstance(module_of(node), type_))
    return [] if before is None or behind is None else list(zip(before[-dims:], behind[-dims:], strict=True))
