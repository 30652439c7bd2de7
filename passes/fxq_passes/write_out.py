"""Functions that hold products become the operations that they consist of, so that the products are quantized."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from fxq import ROUNDING, Pass, Rewriter, Stage, register_pass
from fxq.graph import is_add, kind, only_reader, shape_of, written_out
from fxq_passes.canonical.attention_form import attention_form
from fxq_passes.canonical.canonical_forms import CANONICAL, WEIGHTED
from fxq_passes.canonical.written_forms import addmm, baddbmm, einsum_form
from fxq_passes.folding.computed_weights import constant_nodes, stored_value
from fxq_passes.planning.plan_questions import takes_quantized_input

_MATMULS = {torch.matmul, *(form for form, function in CANONICAL.items() if function is torch.matmul)}
_PRODUCTS = {
    F.scaled_dot_product_attention, torch.einsum, torch.addmm, torch.baddbmm, "addmm", "baddbmm", *_MATMULS, *WEIGHTED,
}  # fmt: skip


@register_pass("write_out")
@dataclass(frozen=True)
class WriteOut(Pass):
    """Write out what hides products: attention, einsum, addmm, functions behind ``torch.fx.wrap``.

    scaled_dot_product_attention stays whole where the target multiplies no integers there; so do wrapped functions that
    multiply no matrices, or have a kind of their own. A product with a stored matrix becomes a linear layer.
    """

    stage = Stage.NORMALIZED
    tolerance = ROUNDING

    def run(self, rw: Rewriter) -> None:
        """Functions of the model's libraries first: the others may be in them."""
        for node in rw.nodes(lambda node: bool(node.meta.get("is_wrapped")) and kind(node) == "other"):
            _write_out_wrapped(rw, node)
        for node in rw.nodes(lambda node: node.target is F.scaled_dot_product_attention):
            _write_out_attention(rw, node)
        stored = constant_nodes(rw) if not rw.qat and rw.target.stores_integers("linear") else frozenset()
        for node in rw.nodes(lambda node: node.op in ("call_function", "call_method")):
            _write_out_product(rw, node, stored)
        for node in rw.nodes(lambda node: node.target is F.linear):
            _take_bias(rw, node, stored)


def _write_out_product(rw: Rewriter, node: Node, stored: Set[Node]) -> None:
    function: Callable[..., Tensor] | None = None
    if node.target in (torch.addmm, "addmm"):
        function = addmm(node.args[-1] in stored)
    elif node.target in (torch.baddbmm, "baddbmm"):
        function = baddbmm
    elif node.target is torch.einsum:
        _write_out_einsum(rw, node, stored)
    elif node.target in _MATMULS:
        _write_out_matmul(rw, node, stored)
    if function is not None:
        _write_out(rw, node, function)


def _write_out_einsum(rw: Rewriter, node: Node, stored: Set[Node]) -> None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        rw.skip(node, "an einsum of other than two operands")
        return
    if operands[0] in stored and operands[1] not in stored:  # the weight comes second
        terms, arrow, output = equation.partition("->")
        equation, operands = ",".join(reversed(terms.split(","))) + arrow + output, operands[::-1]
    form = einsum_form(equation, operands[1] in stored)
    if form is None:
        rw.skip(node, f"einsum {equation!r} is no product of two matrices")
        return
    _write_out(rw, node, form, operands)


def _write_out_matmul(rw: Rewriter, node: Node, stored: Set[Node]) -> None:
    """Turn a product with a stored matrix into a linear layer."""
    left, right = node.args if len(node.args) == 2 else (None, None)
    if not isinstance(left, Node) or left in stored or not isinstance(right, Node) or right not in stored:
        return
    matrix, rows = right.meta.get("val"), left.meta.get("val")
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or not isinstance(rows, Tensor) or rows.dim() < 2:
        return
    if rw.target.stores_integers("matmul") or not matrix.is_floating_point():
        return
    turned = rw.insert_call(node, "t", (right,), node, value=matrix.t())
    rw.call_instead(node, F.linear, (left, turned), {}, "a product with a stored matrix is a linear layer")


def _take_bias(rw: Rewriter, node: Node, stored: Set[Node]) -> None:
    """Let a linear layer without a bias have the stored vector that is added to its result."""
    reader, shape = only_reader(node), shape_of(node)
    if reader is None or not is_add(reader) or len(node.args) != 2 or node.kwargs or shape is None:
        return
    bias = next((source for source in reader.args if source is not node), None)
    if isinstance(bias, Node) and bias in stored and shape_of(bias) == shape[-1:]:
        rw.call_instead(reader, F.linear, (*node.args, bias), {}, "the stored vector that is added is its bias")
        rw.erase(node, f"became {reader.name!r}, with a bias")


def _write_out(
    rw: Rewriter, node: Node, function: Callable[..., Tensor], operands: Sequence[Any] | None = None
) -> None:
    call = written_out(node, function, operands)
    if isinstance(call, str):
        rw.skip(node, call)
    else:
        rw.write_out(node, call, "written out: its products can be quantized")


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
