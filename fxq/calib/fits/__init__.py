"""The calibration methods that come with fxq, one a file: each file in this folder registers its own."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
