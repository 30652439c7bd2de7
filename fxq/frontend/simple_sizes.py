"""Stop an export with open sizes where it would take minutes: each step reasons about all that sizes have become."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode

# Strided convolutions and products of their sizes stay below ten; windows with padding (Swin) reach hundreds.
_MOST_OPERATIONS = 20


class TooInvolved(Exception):
    """A size has become an expression of too many operations."""


class SizesStaySimple(TorchFunctionMode):
    """Raises TooInvolved at the first call of a function of torch on a tensor with such a size."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at the first argument, and go on."""
        if args and isinstance(args[0], Tensor) and any(map(_is_involved, args[0].shape)):
            raise TooInvolved(f"sizes {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


def _is_involved(size: Any) -> bool:
    return isinstance(size, SymInt) and size.node.expr.count_ops() > _MOST_OPERATIONS
