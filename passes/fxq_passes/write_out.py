"""Functions that hold products become the operations that they consist of, so that the products are quantized."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from fxq import ROUNDING, Pass, Rewriter, Stage, register_pass
from fxq.graph import kind, written_out
from fxq_passes.canonical.attention_form import attention_form
from fxq_passes.canonical.canonical_forms import CANONICAL, WEIGHTED
from fxq_passes.folding.computed_weights import stored_value
from fxq_passes.planning.plan_questions import takes_quantized_input

_PRODUCTS = {F.scaled_dot_product_attention, torch.matmul, *WEIGHTED}
_PRODUCTS |= {spelling for spelling, function in CANONICAL.items() if function is torch.matmul}


@register_pass("write_out")
@dataclass(frozen=True)
class WriteOut(Pass):
    """Write out scaled_dot_product_attention, where the target multiplies integers there, and torch.fx.wrap functions.

    Functions behind ``torch.fx.wrap`` that multiply nothing, and those with a kind of their own, stay whole.
    """

    stage = Stage.NORMALIZED
    tolerance = ROUNDING

    def run(self, rw: Rewriter) -> None:
        """Functions of the model's libraries first: attention may be in them."""
        for node in rw.nodes(lambda node: bool(node.meta.get("is_wrapped")) and kind(node) == "other"):
            _write_out_wrapped(rw, node)
        for node in rw.nodes(lambda node: node.target is F.scaled_dot_product_attention):
            _write_out_attention(rw, node)


def _write_out_wrapped(rw: Rewriter, node: Node) -> None:
    function = node.target
    assert callable(function)
    call = written_out(node, function)
    if isinstance(call, str):
        rw.skip(node, f"behind torch.fx.wrap, and {call}")
    elif any(operation.target in _PRODUCTS for operation in call.graph.nodes):
        rw.write_out(node, call, "written out: it holds products that can be quantized")


def _write_out_attention(rw: Rewriter, node: Node) -> None:
    if rw.target.quantizes_inputs("attention") or not takes_quantized_input(rw, node, "matmul"):
        return
    if rw.config(node) is None:
        rw.skip(node, f"rule {rw.settings.rule_for(node)} leaves it in float")
        return
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    call = written_out(node, attention_form(isinstance(mask, Node) and _may_hide_rows(rw, mask)))
    if isinstance(call, str):
        rw.skip(node, call)
    else:
        rw.write_out(node, call, "attention written out: its products are quantized")


def _may_hide_rows(rw: Rewriter, mask: Node) -> bool:
    """Return whether a mask may hide all keys from a query; of a stored one it is known."""
    stored = stored_value(rw, mask)
    if not isinstance(stored, Tensor):
        return True
    return bool((stored.logical_not() if stored.dtype == torch.bool else stored == -torch.inf).all(-1).any())
