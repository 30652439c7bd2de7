"""fxq: a torch.fx graph-rewriting quantization compiler. A trained model goes in, a fused int8 ONNX file comes out.

The public names lie in ``fxq.public``. They are imported at the first use of one: torch takes seconds, and the help of
the command line needs none of it.
"""

import importlib
import logging
import sys
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxq.public import *  # noqa: F403
    from fxq.public import __all__ as __all__

__version__ = version("fxq")

# A program that uses fxq decides where its messages go; `fxq -v` prints them.
logging.getLogger("fxq").addHandler(logging.NullHandler())

_MODULES = frozenset({"compat", "testing"})  # that nothing of fxq imports
_FUNCTIONS = frozenset({"auto_quantize", "compare", "explain", "recipe", "sensitivity"})


class _Package(ModuleType):
    """Where a function has the name of a module, as ``fxq.recipe`` and ``fxq.compare`` do, the function is meant."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each submodule to its package, after which __getattr__ would not be asked.
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # asked by Python itself, which needs no torch
        raise AttributeError(f"module 'fxq' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"fxq.{name}")
    public = importlib.import_module("fxq.public")
    globals().update({known: vars(public)[known] for known in public.__all__ if known in vars(public)})
    if name == "__all__":
        return public.__all__
    if name in globals():  # one of them, or a module that they brought along, such as fxq.graph
        return globals()[name]
    raise AttributeError(f"module 'fxq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({"__version__", *__getattr__("__all__")})
