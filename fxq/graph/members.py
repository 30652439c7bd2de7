"""Tensors of unlike ranges that are joined in one: how many of its steps each of them has.

A concatenation of boxes in pixels and scores from 0 to 1 has a step of 2.5 pixels in 8 bits, and every score is 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxq.graph.kinds import kind, module_of, shape_of
from fxq.graph.match import is_quantizer, rule_path
from fxq.graph.modules import graphs_in
from fxq.kinds import ACTIVATIONS, MOVES_DATA
from fxq.nn import TensorQuantizer

# What is left of a tensor that has fewer is its sign and a rough idea.
FEWEST_STEPS = 4
_PASSING = ACTIVATIONS | MOVES_DATA | {"max_pool"}
_LARGEST = "fxq_largest_of_members"


@contextmanager
def noting_members(model: nn.Module) -> Iterator[None]:
    """Note, at each quantizer node, the largest magnitude of what it reads as data flows through: of each member alone.

    Only where it reads a concatenation, or shares its range with others.
    """
    calls: dict[nn.Module, list[Node]] = {}
    for node in (node for _, gm in graphs_in(model) for node in gm.graph.nodes):
        if is_quantizer(node):
            node.meta.pop(_LARGEST, None)
            calls.setdefault(module_of(node), []).append(node)
    handles = [
        module.register_forward_pre_hook(_Note(nodes))
        for module, nodes in calls.items()
        if len(nodes) > 1 or _joined(nodes[0]) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def noted_members(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return what :func:`noting_members` noted, by the path of the node; on the CPU."""
    return {name: [one.cpu() for one in node.meta[_LARGEST]] for name, node in _noting(model) if _LARGEST in node.meta}


def merge_members(model: nn.Module, noted: Sequence[Mapping[str, list[Tensor]]]) -> None:
    """Note the largest of what was noted in several processes."""
    for name, node in _noting(model):
        found = [one[name] for one in noted if name in one]
        if found:
            node.meta[_LARGEST] = [torch.stack(members).amax(0) for members in zip(*found, strict=True)]


def _noting(model: nn.Module) -> Iterator[tuple[str, Node]]:
    for path, gm in graphs_in(model):
        yield from ((f"{path}.{node.name}", node) for node in gm.graph.nodes if is_quantizer(node))


def crowded_members(gm: GraphModule) -> dict[str, str]:
    """Return what joins a tensor with far larger ones and reads the result in one range; and the small tensors.

    The keys are the names that rules have for these nodes.
    """
    found: dict[str, str] = {}
    for path, part in graphs_in(gm):
        found |= {f"{path}.{name}".lstrip("."): small for name, small in _crowded(part).items()}
    return found


def _crowded(gm: GraphModule) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        if kind(node) != "cat":
            continue
        sources = node.all_input_nodes
        if all(map(is_quantizer, sources)) and len({id(module_of(one)) for one in sources}) == 1:
            seen = [one.meta[_LARGEST][0] for one in sources if _LARGEST in one.meta]
            _add(found, [node], _small(module_of(sources[0]), seen, _names(node)))
    for reader in filter(is_quantizer, gm.graph.nodes):
        joined = _joined(reader)
        if joined is not None:
            names = _names(joined)
            _add(found, [joined, *_computing(reader)], _small(module_of(reader), reader.meta.get(_LARGEST, []), names))
    return found


class _Note:
    """A hook that tells the calls of one module apart: a graph makes them in its own order, each once."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes, self.count = nodes, 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        node = self.nodes[self.count % len(self.nodes)]
        self.count += 1
        (x,) = args
        if not isinstance(x, Tensor) or not x.numel():
            return
        largest = [part.detach().abs().amax().float() for part in _parts(_joined(node), x) if part.numel()]
        before = node.meta.get(_LARGEST, largest)
        node.meta[_LARGEST] = [torch.maximum(*pair) for pair in zip(before, largest, strict=True)]


def _joined(quantizer: Node) -> Node | None:
    """Return the concatenation that a quantizer reads, activations and pooling aside."""
    source = quantizer.all_input_nodes[0]
    while kind(source) in _PASSING - MOVES_DATA:
        source = source.all_input_nodes[0]
    return source if kind(source) == "cat" else None


def _computing(node: Node) -> Iterator[Node]:
    """Yield what computes with the values of ``node``, behind what only moves or clamps them."""
    for reader in node.users:
        if is_quantizer(reader) or kind(reader) in _PASSING:
            yield from _computing(reader)
        elif reader.op != "output":
            yield reader


def _names(joined: Node) -> list[str]:
    return [one.all_input_nodes[0].name if is_quantizer(one) else one.name for one in joined.all_input_nodes]


def _parts(joined: Node | None, x: Tensor) -> list[Tensor]:
    """Return the members of a concatenation, or ``x`` alone where it is none."""
    if joined is None:
        return [x]
    dim = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)
    shapes = [shape_of(member) for member in joined.args[0]] if isinstance(joined.args[0], list | tuple) else []  # type: ignore[arg-type]
    if not isinstance(dim, int) or not shapes or any(shape is None or len(shape) != x.dim() for shape in shapes):
        return [x]
    sizes = [shape[dim] for shape in shapes if shape is not None]
    # Where batches of another size are joined along the batch, the members are not known.
    return list(torch.split(x, sizes, dim)) if sum(sizes) == x.shape[dim] else [x]


def _small(quantizer: nn.Module, largest: list[Tensor], names: list[str]) -> str:
    """Return, in words, which members have too few steps of the range; "" where none has, or where it is not known."""
    if not isinstance(quantizer, TensorQuantizer) or not quantizer.has_range or len(largest) != len(names):
        return ""
    step = float(quantizer.scale.max())
    counts = [(name, float(value) / step) for name, value in zip(names, largest, strict=True)]
    return ", ".join(f"{name!r} has {count:.2g} steps" for name, count in counts if 0 < count < FEWEST_STEPS)


def _add(found: dict[str, str], nodes: list[Node], small: str) -> None:
    for node in nodes if small else ():
        name = rule_path(node)
        found[name] = small
