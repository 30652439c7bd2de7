"""The figure of a task: ``metric(model) -> float``, higher is better, written by the user and called with care."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxq.errors import MetricError
from fxq.graph.snapshot import evaluated

Metric = Callable[[Any], float]


def check_metric(metric: Any) -> None:
    """Raise a MetricError for what cannot be called."""
    if not callable(metric):
        raise MetricError(f"metric is a function of a model, metric(model) -> float, got {type(metric).__name__}")


def measured(metric: Metric, model: nn.Module, what: str) -> float:
    """Return the metric of ``model``, in eval mode and without gradients.

    Args:
        metric: the user's.
        model: its modes are as before afterwards.
        what: it is, for the message.

    Raises:
        MetricError: it raised, or gave no number.
    """
    try:
        with evaluated(model), torch.no_grad():
            found = metric(model)
    except Exception as error:  # the user's code runs: it may raise anything
        raise MetricError(f"the metric raised {type(error).__name__} on {what}: {error}") from error
    try:
        value = math.nan if isinstance(found, str | bool) else float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"the metric returned {found!r} for {what}: it must return one number") from error
    if math.isnan(value):
        raise MetricError(f"the metric returned {found!r} for {what}: it must return a number")
    return value
