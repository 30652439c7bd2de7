"""The built-in integer forms, rows like those of plugins: each file in this folder registers its own."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
