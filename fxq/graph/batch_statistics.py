"""Batch norms that normalize by the statistics of the batch in evaluation, too."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F

# Where they take running_mean and running_var; both take training at 5.
_RUNNING: Mapping[Any, tuple[int, int]] = MappingProxyType({F.batch_norm: (1, 2), torch.batch_norm: (3, 4)})
_TRAINING = 5


def drop_unread_statistics(graph: Graph) -> list[Node]:
    """Take running statistics from batch norms that only update them; return these. ``graph`` is changed.

    With ``training=True`` they decide nothing, but exporters normalize by what they are given.
    """
    found = []
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _RUNNING:
            continue
        training = node.args[_TRAINING] if len(node.args) > _TRAINING else node.kwargs.get("training", False)
        if training is not True:
            continue
        places = _RUNNING[node.target]
        args = tuple(None if index in places else value for index, value in enumerate(node.args))
        kwargs = {**node.kwargs, **{name: None for name in ("running_mean", "running_var") if name in node.kwargs}}
        if (args, kwargs) != (node.args, dict(node.kwargs)):
            node.args, node.kwargs = args, kwargs
            found.append(node)
    return found
