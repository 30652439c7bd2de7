"""Which dimensions of the inputs stay open in the file, and what other sizes they take while the file is checked.

A dimension is open as ``times * name + plus``: ``h``, ``8*h``. Sizes of one name are equal.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxq.compare.outputs import named_leaves
from fxq.graph.size_decisions import OpenRange

BATCH = "batch"


@dataclass(frozen=True)
class OpenSize:
    """One open dimension of one input.

    Args:
        name: of its size.
        least, most: what ``name`` may be; None for no end.
        times, plus: the dimension is ``times * name + plus``.
        is_named: the caller gave the name.
        is_optional: it may turn out fixed (``Dim.AUTO``).
    """

    name: str
    least: int = 1
    most: int | None = None
    times: int = 1
    plus: int = 0
    is_named: bool = True
    is_optional: bool = False

    def __str__(self) -> str:
        text = self.name if self.times == 1 else f"{self.times}*{self.name}"
        return f"{text} + {self.plus}" if self.plus > 0 else f"{text} - {-self.plus}" if self.plus else text

    def root(self, size: int) -> int | None:
        """Return the ``name`` that makes the dimension ``size``; None if none does."""
        value, rest = divmod(size - self.plus, self.times)
        return value if not rest and self.least <= value <= (math.inf if self.most is None else self.most) else None


@dataclass(frozen=True)
class OpenShapes:
    """The open dimensions of all inputs.

    Args:
        inputs: a name for each tensor among the inputs, in order.
        dims: its open dimensions.
        is_batch_alone: nothing but the batch was asked for.
    """

    inputs: tuple[str, ...] = ()
    dims: tuple[Mapping[int, OpenSize], ...] = ()
    is_batch_alone: bool = False

    def __bool__(self) -> bool:
        return any(self.dims)

    def places(self, name: str | None = None) -> Iterator[tuple[int, int, OpenSize]]:
        """Yield tensor, dimension and size of each open dimension, or of those of one name."""
        for leaf, dims in enumerate(self.dims):
            yield from ((leaf, axis, size) for axis, size in dims.items() if name in (None, size.name))

    def names(self) -> list[str]:
        """Return the names of the open sizes."""
        return list(dict.fromkeys(size.name for _, _, size in self.places()))

    def sizes(self, inputs: tuple[Any, ...]) -> dict[str, int]:
        """Return what each open size is in ``inputs``."""
        shapes = [tensor.shape for tensor in tensors_of(inputs)]
        return {size.name: size.root(shapes[leaf][axis]) or 0 for leaf, axis, size in self.places()}

    def resized(self, inputs: tuple[Any, ...], sizes: Mapping[str, int]) -> tuple[Any, ...]:
        """Return ``inputs`` with other sizes, by name: what a tensor has is cut, or repeated from its start."""
        remaining = iter(self.dims)

        def resize(tensor: Tensor) -> Tensor:
            for axis, one in next(remaining).items():
                if one.name in sizes:
                    new = one.times * sizes[one.name] + one.plus
                    indices = torch.arange(new, device=tensor.device) % max(tensor.shape[axis], 1)
                    tensor = tensor.index_select(axis, indices)
            return tensor

        return pytree.tree_map_only(Tensor, resize, inputs)  # type: ignore[no-any-return]

    def others(self, inputs: tuple[Any, ...], name: str) -> list[int]:
        """Return other sizes of one name, the best to try first."""
        now = self.sizes(inputs)[name]
        if all(axis == 0 for _, axis, _ in self.places(name)):
            wanted = [1 if now > 1 else 2, now + 1]  # samples
        else:
            wanted = [now + 1, now - 1, 2 * now, now // 2]
        bounds = [size for _, _, size in self.places(name)]
        least = max(one.least for one in bounds)
        most = min((one.most for one in bounds if one.most is not None), default=math.inf)
        return [size for size in dict.fromkeys(wanted) if size != now and least <= size <= most]

    def is_optional(self, name: str) -> bool:
        """Return whether a size may turn out fixed."""
        return all(size.is_optional for _, _, size in self.places(name))

    def without(self, names: Collection[str]) -> "OpenShapes":
        """Return these with some sizes fixed."""
        left = ({axis: size for axis, size in dims.items() if size.name not in names} for dims in self.dims)
        return replace(self, dims=tuple(left))

    def is_batch_open(self, inputs: tuple[Any, ...]) -> bool:
        """Return whether dimension 0 of every tensor with as many samples as the first is open."""
        tensors = tensors_of(inputs)
        count = next((len(tensor) for tensor in tensors if tensor.dim()), 0)
        batched = [leaf for leaf, tensor in enumerate(tensors) if tensor.dim() and len(tensor) == count]
        return bool(self) and any(0 in self.dims[leaf] for leaf in batched[:1])

    def ranges(self, inputs: tuple[Any, ...]) -> list[dict[int, OpenRange]]:
        """Return the open dimensions of each tensor as what decisions are judged by."""
        now = self.sizes(inputs)
        return [
            {
                axis: OpenRange(one.name, now[one.name], one.least, one.most, one.times, one.plus)
                for axis, one in dims.items()
            }
            for dims in self.dims
        ]


def tensors_of(inputs: Any) -> list[Tensor]:
    """Return the tensors in ``inputs``, in the order in which a file takes them."""
    return [tensor for _, tensor in named_leaves(inputs, "input", Tensor)]
