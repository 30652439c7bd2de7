"""How each quantized module is written in a lowered graph: each file in this folder registers what it lowers."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
