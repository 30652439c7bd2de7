"""A SiLU behind a convolution becomes a product with its sigmoid, where a target computes these in integers."""

import operator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node

from fxq import ROUNDING, Pass, Rewriter, Stage, Target, register_pass
from fxq.graph import kind, module_path, note_part
from fxq.graph.match import rule_path
from fxq_passes.planning.plan_questions import kept_in_float

_CONVOLUTIONS = ("conv", "conv_transpose")


@register_pass("split_silu")
@dataclass(frozen=True)
class SplitSilu(Pass):
    """Write ``silu(x)`` as ``x * sigmoid(x)`` where the target has integer kernels for both and none for SiLU.

    Only behind a convolution, which writes integers anyway: elsewhere x would have to be quantized for it.
    """

    stage = Stage.NORMALIZED
    tolerance = ROUNDING

    def run(self, rw: Rewriter) -> None:
        """Ask the target first."""
        if not _computes_both(rw.target):
            return
        in_float = kept_in_float(rw)
        for node in rw.nodes(lambda node: kind(node) == "silu"):
            source = node.all_input_nodes[0]
            if kind(source) not in _CONVOLUTIONS:
                rw.skip(node, "no convolution writes its input in integers")
            elif rw.config(node) is None or rw.config(source) is None:
                rw.skip(node, "a rule leaves it, or the convolution before it, in float")
            elif any(reader in in_float or kind(reader) in rw.target.float_readers for reader in node.users):
                rw.skip(node, "what reads it computes in float, and would keep the product in float")
            else:
                _split(rw, node, source)


def _computes_both(target: Target) -> bool:
    both = ("sigmoid", "mul")
    has_both = all(target.quantizes_inputs(one) and target.quantizes_output(one) for one in both)
    is_whole = "silu" in target.fused_activations or bool(target.rules_for("silu"))
    return has_both and not is_whole and all(target.quantizes_output(one) for one in _CONVOLUTIONS)


def _split(rw: Rewriter, node: Node, source: Node) -> None:
    whole = rule_path(node)
    why = f"{rw.target.name} computes sigmoid and product in integers, and SiLU in float"
    place = rw.insert_call(node, torch.sigmoid, (source,), node, value=node.meta.get("val"))
    gate = rw.call_module_instead(place, f"{module_path(node)}_sigmoid", nn.Sigmoid(), (source,), why)
    product = rw.call_instead(node, operator.mul, (source, gate), {}, why)
    for part in (gate, product):
        note_part(part, whole)
