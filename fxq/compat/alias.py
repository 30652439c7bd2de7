"""install_alias: ``import pytorch_quantization`` then gives fxq.compat, so that a script needs no changed import."""

import importlib
import pkgutil
import sys
from types import ModuleType, TracebackType
from typing import Self

from fxq.errors import CompatError

_PACKAGE = "fxq.compat.pytorch_quantization"
_NAME = "pytorch_quantization"


def install_alias() -> "Alias":
    """Make ``pytorch_quantization`` and all of its submodules importable as fxq.compat, until the alias is removed.

    Call it before the first import of ``pytorch_quantization``. In a with statement the alias is removed at the end;
    what was imported meanwhile keeps working.

    Raises:
        CompatError: the real package is imported already, so both would be in use.
    """
    imported = sys.modules.get(_NAME)
    if imported is not None and imported.__name__ != _PACKAGE:
        raise CompatError(
            f"the real {_NAME} is imported already, from {getattr(imported, '__file__', None)}: call install_alias() "
            f"before the first import of it, or import {_PACKAGE} under its own name"
        )
    return Alias(_compat_modules())


class Alias:
    """The names that one :func:`install_alias` added to ``sys.modules``; a context manager that removes them."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        # Of two aliases the first one owns the names, and the end of the second leaves them.
        self._added = [name for name in modules if name not in sys.modules]
        sys.modules.update(modules)

    def remove(self) -> None:
        """Forget the names; a second call does nothing."""
        for name in self._added:
            sys.modules.pop(name, None)
        self._added.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _compat_modules() -> dict[str, ModuleType]:
    """Return every module of fxq.compat by its name in pytorch-quantization."""
    compat = importlib.import_module(_PACKAGE)
    inner = [found.name for found in pkgutil.walk_packages(compat.__path__, f"{_PACKAGE}.")]
    return {_NAME + name.removeprefix(_PACKAGE): importlib.import_module(name) for name in [_PACKAGE, *inner]}
