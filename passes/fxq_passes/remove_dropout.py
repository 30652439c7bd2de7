"""Operations that do nothing at inference leave the graph."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import kind

_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip


@register_pass("remove_dropout")
@dataclass(frozen=True)
class RemoveDropout(Pass):
    """Bypass dropout, stochastic depth, identity and ``x + 0``; dropout stays where the model will be trained."""

    stage = Stage.NORMALIZED
    tolerance = EXACT

    def run(self, rw: Rewriter) -> None:
        """Let their readers read their input."""
        for node in rw.nodes():
            found = kind(node)
            if found == "identity":
                rw.bypass(node, "an identity does nothing")
            elif _is_neutral(node):
                rw.bypass(node, "adds 0, as Python's sum() does first, or multiplies by 1", node.all_input_nodes[0])
            elif found == "dropout" and rw.qat:
                rw.skip(node, "dropout is kept for training")
            elif found == "dropout":
                rw.bypass(node, "dropout does nothing at inference")
            elif _is_dropout_function(node):
                if rw.qat and isinstance(_training_of(node), Node):
                    rw.skip(node, "dropout is kept for training")
                elif _training_of(node):
                    rw.skip(node, "the model asks for dropout at inference (training=True)")
                else:
                    rw.bypass(node, "dropout does nothing at inference")


def _is_neutral(node: Node) -> bool:
    """Return whether ``node`` is a tensor plus 0 or times 1."""
    neutral = {operator.add: 0, operator.mul: 1}.get(node.target)  # type: ignore[arg-type]  # a target may be a text
    numbers = [value for value in node.args if not isinstance(value, Node)]
    if neutral is None or len(node.all_input_nodes) != 1 or numbers != [neutral]:
        return False
    value, source = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
    return isinstance(value, Tensor) and isinstance(source, Tensor) and value.dtype == source.dtype


def _is_dropout_function(node: Node) -> bool:
    if node.op != "call_function":
        return False
    # torchvision wraps stochastic depth as one function of the graph; fxq does not depend on torchvision.
    return node.target in _DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth"


def _training_of(node: Node) -> object:
    """Return the ``training`` argument; a node where it follows train() and eval()."""
    default = node.target not in (F.alpha_dropout, F.feature_alpha_dropout)
    position = 3 if getattr(node.target, "__name__", "") == "stochastic_depth" else 2
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get("training", node.kwargs.get("train", default))
