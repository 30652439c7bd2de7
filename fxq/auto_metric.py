"""The metric that auto_quantize keeps: what it is for the float model, and whether it tells models apart at all."""

import math

import torch
from torch import nn
from torch.fx import GraphModule

from fxq.errors import MetricError
from fxq.given_model import as_module
from fxq.graph.modules import copy_graph
from fxq.metric import Metric, measured
from fxq.nn import TensorQuantizer


class UnfitMetricError(MetricError):
    """By the metric no model can be told from another, so that none is a result."""


class KeptMetric:
    """A metric, of which at most ``max_drop`` may be lost.

    Args:
        metric: the user's.
        model: the float one.
        max_drop: in the metric's unit.

    Attributes:
        float_value: of the float model; NaN before ``measure_float``.
    """

    def __init__(self, metric: Metric, model: nn.Module, max_drop: float) -> None:
        self.metric, self._model, self.max_drop = metric, as_module(model), max_drop
        self.float_value = math.nan

    def measure_float(self) -> None:
        """Run the metric on the float model; a MetricError where it raised, or gave no finite number."""
        self.float_value = measured(self.metric, self._model, "the float model")
        if not math.isfinite(self.float_value):
            raise MetricError(f"the metric is {self.float_value} for the float model: nothing can be kept of that")

    def is_kept(self, value: float) -> bool:
        """Is ``value`` as near the float model's as was asked for?"""
        return value >= self.float_value - self.max_drop

    def check_says_the_same_again(self) -> None:
        """Refuse a metric whose values for one model are further apart than the drop that is allowed."""
        again = measured(self.metric, self._model, "the float model, once more")
        if abs(again - self.float_value) > self.max_drop:
            raise self._scattered(f"is {again:.6g} for it in a second call")

    def refuse_in_float(self, value: float) -> None:
        """Refuse a metric that is not kept by ``value``, that of the float model's graph."""
        raise self._scattered(f"is {value:.6g} for its graph with all in float, which computes the same")

    def check_depends_on_model(self, prepared: GraphModule) -> None:
        """Refuse a metric that is the same for the float model, the quantized one and two broken on purpose."""
        for factor, what in ((0.0, "zero"), (-1.0, "of the wrong sign")):
            try:
                value = measured(self.metric, _broken(prepared, factor), f"a model whose weights are all {what}")
            except MetricError:  # undefined there, as precision is where nothing is found: it looks at the model
                return
            if value != self.float_value:
                return
        raise UnfitMetricError(
            f"the metric is {self.float_value:.6g} for the float model, for the quantized one, and for models whose "
            "weights are all zero or of the wrong sign: it does not depend on the model that it is given. Let it run "
            "its argument, on data that tells good from bad"
        )

    def _scattered(self, how: str) -> UnfitMetricError:
        return UnfitMetricError(
            f"the metric was {self.float_value:.6g} for the float model, and {how}: a drop of {self.max_drop:g} is "
            "within its own scatter. Let it judge the same data in each call, seed what is random, or allow a larger "
            "max_drop"
        )


@torch.no_grad()
def _broken(prepared: GraphModule, factor: float) -> GraphModule:
    """Return a copy with each weight times ``factor``."""
    gm = copy_graph(prepared).eval()
    for module in gm.modules():
        for parameter in () if isinstance(module, TensorQuantizer) else module.parameters(recurse=False):
            parameter.mul_(factor)
    return gm
