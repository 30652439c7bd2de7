"""Placement by measurement: which parts of a model are faster in float on the runtime and machine at hand.

>>> tuned = fxq.tune(model, batches, "onnxruntime")
>>> print(tuned)
>>> fxq.export_onnx(tuned.converted, "model.onnx")
>>> tuned.recipe.to_toml()

Kernels are not the whole cost: where int8 meets float a tensor is converted, where layouts meet it is reordered. So
whole regions are judged, and end to end. ``regions.py`` proposes them, ``search.py`` measures files in turn.
"""

from fxq.tuning.report import Trial, Tuned
from fxq.tuning.tuning import find_runtime, tune

__all__ = ["Trial", "Tuned", "find_runtime", "tune"]
