"""Files to time: candidates, which are calibrated as cheaply as it goes, since ranges cost no time; and results."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.api import convert, export_onnx, prepare
from fxq.calibration import calibrate, needs_data
from fxq.compare.quality import Quality
from fxq.data import Data
from fxq.explain import explain
from fxq.recipe import Recipe

FloatRules = Sequence[tuple[str, None]]


@dataclass(frozen=True)
class Built:
    """A model, calibrated on the data and converted, and its file."""

    converted: GraphModule
    recipe: Recipe
    quality: Quality | None
    path: Path


class Builder:
    """Makes the models of one search, as ``prepare``, ``convert`` and ``export_onnx`` do.

    Args:
        model: the user's.
        data: to calibrate on.
        inputs: positional; the files take inputs of these shapes.
        recipe: the user's.
        folder: for the files.
    """

    def __init__(self, model: nn.Module, data: Data, inputs: tuple[Any, ...], recipe: Recipe, folder: Path) -> None:
        self._model, self._data, self._inputs, self._recipe, self._folder = model, data, inputs, recipe, folder
        self._count = 0

    def candidate(self, rules: FloatRules) -> tuple[GraphModule, Path]:
        """Return the prepared model with more rules, calibrated on ``inputs`` alone, and its file; errors as below."""
        recipe = self._recipe.with_accuracy("plain").replace(calibrator="max").with_rules(*rules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ranges, which nobody uses, and of nothing quantized
            prepared = prepare(self._model, self._inputs, recipe)
            if needs_data(prepared):
                one = Data([self._inputs], lambda gm, inputs: gm(*inputs), progress=False, share=False)
                calibrate(prepared, one, progress=False)
            return prepared, self._written(convert(prepared, min_sqnr_db=-math.inf))

    def result(self, rules: FloatRules) -> Built:
        """Return the model as the recipe makes it with more rules; errors as of ``fxq.quantize`` and export."""
        recipe = self._recipe.with_rules(*rules)
        with warnings.catch_warnings():
            if rules:
                warnings.simplefilter(
                    "ignore"
                )  # they are said of the default; that nothing is quantized, by the report
            prepared = prepare(self._model, self._inputs, recipe)
            if needs_data(prepared):
                calibrate(prepared, self._data, progress=False)
            converted = convert(prepared)
            return Built(converted, recipe, explain(converted).quality, self._written(converted))

    def _written(self, converted: GraphModule) -> Path:
        self._count += 1
        path = self._folder / f"{self._count}.onnx"
        export_onnx(converted, path, self._inputs, dynamic_batch=False, check=False)
        return path
