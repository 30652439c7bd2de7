"""Overlay: a class laid over a module's own, which changes what the module does and keeps what it holds."""

from functools import cache
from typing import Any, ClassVar

from torch import nn


class Overlay(nn.Module):
    """Base of such classes. The one that lies over a given class is made when it is needed.

    Attributes:
        own_type: the module's own class.
    """

    own_type: ClassVar[Any]

    @classmethod
    def over(cls, own_type: Any) -> Any:
        """Return the class that is this one over ``own_type``, the same each time."""
        overlay: Any = cls  # mypy: a class of modules is no Hashable
        return _laid_over(overlay, own_type)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the two classes that can be imported."""
        return _made, (type(self).__mro__[1], self.own_type), dict(vars(self))


@cache
def _laid_over(overlay: Any, own_type: Any) -> Any:
    name = f"{overlay.__name__.removesuffix('Overlay')}{own_type.__name__}"
    return type(name, (overlay, own_type), {"own_type": own_type, "__module__": __name__})


def _made(overlay: type[Overlay], own_type: Any) -> Any:
    made = overlay.over(own_type)
    return made.__new__(made)
