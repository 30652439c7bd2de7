"""Optional dependencies, which a command imports where it needs them."""

import importlib
from types import ModuleType

from fxq.errors import ModelError


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional dependency.

    Raises:
        ModelError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(f"{purpose} needs {module.partition('.')[0]}: pip install 'fxq[{extra}]'") from error
