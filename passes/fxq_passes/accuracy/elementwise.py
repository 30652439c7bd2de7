"""What elementwise operations in float make of a tensor before anything else reads it.

A hard swish does not tell values below -3 apart, and a scale behind it changes nothing of that: what an error of the
tensor costs shows behind them. SiLU's sigmoid and product, with quantizers between them, are such operations too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fxq import Rewriter
from fxq.graph import ACTIVATIONS, is_quantizer, is_weighted, kind, shape_of
from fxq.nn import ScaledChannels
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.reader import Reader

_ARITHMETIC = frozenset({"add", "sub", "mul", "div"})


@dataclass(frozen=True)
class Elementwise:
    """Operations that read ``start``, one another, numbers, and stored tensors with a value for each channel at most.

    Args:
        start: a node.
        axis: its dimension that counts channels, from the end.
        nodes: the operations, in execution order.
        stored: the stored tensors that they read.
    """

    start: Node
    axis: int
    nodes: tuple[Node, ...]
    stored: dict[Node, Any]
    rw: Rewriter

    @classmethod
    def behind(cls, rw: Rewriter, start: Node, axis: int) -> Self:
        """Return all of them behind ``start``."""
        found, stored = dict[Node, None](), dict[Node, Any]()
        shape, waiting = shape_of(start) or (), [start]
        while waiting:
            for reader in waiting.pop(0).users:
                inner = {start, *found}
                if reader in found or not _is_elementwise(rw, reader):
                    continue
                others = [source for source in reader.all_input_nodes if source not in inner]
                tensors = [_stored(rw, source) for source in others]
                if all(one is not None and _is_by_channel(one, shape, axis) for one in tensors):
                    stored.update(zip(others, tensors, strict=True))
                    found[reader] = None
                    waiting.append(reader)
        return cls(start, axis, tuple(found), stored, rw)

    def exits(self) -> list[tuple[Node, Node]]:
        """Return pairs: ``start`` or an operation, and a reader of it that is none of them."""
        inner = set(self.nodes)
        return [(node, reader) for node in (self.start, *self.nodes) for reader in node.users if reader not in inner]

    def until(self, node: Node) -> Callable[[Tensor], Tensor]:
        """Return the function that makes what ``node`` computes of ``start``, quantizers aside."""

        @torch.no_grad()
        def compute(value: Tensor) -> Tensor:
            values: dict[Node, Any] = {self.start: value, **self.stored}
            for step in self.nodes:
                args, kwargs = map_arg((step.args, step.kwargs), values.__getitem__)
                if is_quantizer(step):
                    values[step] = args[0]
                elif step.op == "call_module":
                    values[step] = self.rw.module(step)(*args, **kwargs)
                else:
                    values[step] = step.target(*args, **kwargs)  # type: ignore[operator]
                if step is node:
                    break
            found: Tensor = values[node]
            return found

        return compute

    def readers(self, values: list[Tensor], count: int) -> list[Reader]:
        """Return the layers that read what comes of ``start``, and all else as a layer that takes each channel alike.

        Args:
            values: of ``start``, for each batch.
            count: how many positions to sample.

        Returns:
            One at least, but for a tensor whose last dimension counts channels, which no layer reads.
        """
        found, dims = list[Reader](), -1 - self.axis
        for node in (self.start, *self.nodes):
            outer = [reader for at, reader in self.exits() if at is node]
            matrices = [LayerMatrix.of(self.rw.module(one)) if is_weighted(one) else None for one in outer]
            layers = [one for one in matrices if one is not None and one.channel_axis == self.axis]
            if len(layers) < len(outer) and dims:
                layers.append(LayerMatrix.of_channels(values[0], dims))
            found += [Reader(one, values, count, self.through(node, one)) for one in layers]
        return found

    def through(self, node: Node, matrix: LayerMatrix) -> Callable[[Tensor], Tensor]:
        """Return the same of samples of ``start`` as ``matrix`` has them: (positions, groups, inputs of an output)."""
        compute, dims = self.until(node), -1 - self.axis

        def of_samples(inputs: Tensor) -> Tensor:
            if dims == 0:
                return compute(inputs).reshape(inputs.shape)
            kernel = inputs.shape[1] * inputs.shape[2] // matrix.channels
            spread = inputs.reshape(len(inputs), matrix.channels, kernel, *[1] * (dims - 1))
            return compute(spread).reshape(inputs.shape)

        return of_samples


def activations_behind(rw: Rewriter, quantizer: Node) -> Elementwise | None:
    """Return what is elementwise behind a quantizer of what a layer makes, None where no activation reads it."""
    producer = quantizer.all_input_nodes[0]
    matrix = LayerMatrix.of(rw.module(producer)) if is_weighted(producer) else None
    if matrix is None:
        return None
    behind = Elementwise.behind(rw, quantizer, matrix.channel_axis)
    return behind if any(kind(node) in ACTIVATIONS for node in behind.nodes) else None


def _is_elementwise(rw: Rewriter, node: Node) -> bool:
    if node.op == "call_module" and isinstance(rw.module(node), ScaledChannels):
        return True
    return is_quantizer(node) or kind(node) in ACTIVATIONS or (node.op == "call_function" and kind(node) in _ARITHMETIC)


def _stored(rw: Rewriter, node: Node) -> Tensor | None:
    """Return the stored tensor that ``node`` is, quantized or not."""
    while is_quantizer(node):
        node = node.all_input_nodes[0]
    return rw.tensor(node) if node.op == "get_attr" else None


def _is_by_channel(stored: Tensor, shape: tuple[int, ...], axis: int) -> bool:
    """Return whether ``stored`` has one value, or one for each channel of a tensor of that shape."""
    if stored.dim() > len(shape):
        return False
    dims = range(-stored.dim(), 0)
    return all(size == 1 or (dim == axis and size == shape[dim]) for dim, size in zip(dims, stored.shape, strict=True))
