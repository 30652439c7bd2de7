"""Sums, differences and products of two tensors, and of tensors with numbers."""

import operator
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.fx import Node

from fxq.errors import GraphError
from fxq.graph.kinds import kind
from fxq.graph.stored import stored_tensor
from fxq.integer.elementwise import as_table, is_of_one_tensor
from fxq.integer.grid import Grid, Term, double
from fxq.integer.writer import Writer, described, tensors_read
from fxq.quant.ops.integer_math import INTEGER_MUL
from fxq.registry import integer_form

# Bits of each factor: the product of two fits int32. Constants have as many.
_FACTOR_BITS = 15


class _Arithmetic(ABC):
    """Operations of two operands, tensors or numbers."""

    def why_not(self, node: Node) -> str | None:
        """Return that it is called with options."""
        return f"it is called with {', '.join(node.kwargs)}" if node.kwargs or len(node.args) != 2 else None

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Look it up where it is computed from one tensor, element by element; else requantize the terms."""
        if is_of_one_tensor(node):
            return as_table(writer, node, grid)
        return writer.requantize(self.terms(writer, node), grid, node)

    @abstractmethod
    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return what adds up to the result."""


@integer_form("add", "sub")
class IntegerSum(_Arithmetic):
    """The terms of both operands, those of a subtrahend with negative steps."""

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return the terms of both."""
        left, right = ([*_terms_of(writer, node, operand)] for operand in node.args)
        if node.target in (operator.sub, torch.sub):
            right = [Term(one.node, one.zero_point, -one.scale, one.bound, one.axis) for one in right]
        return left + right


@integer_form("mul", "div")
class IntegerProduct(_Arithmetic):
    """The product of codes; a number, which may be a divisor, only changes the step."""

    def why_not(self, node: Node) -> str | None:
        """Return that it divides by a tensor."""
        if kind(node) == "div" and not (len(node.args) == 2 and isinstance(node.args[1], int | float) and node.args[1]):
            return "it divides by a tensor, or by 0"
        return super().why_not(node)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return one term, or those of a tensor that a number scales."""
        numbers = [operand for operand in node.args if isinstance(operand, int | float)]
        if numbers:
            (source,) = tensors_read(node)
            factor = 1 / numbers[0] if kind(node) == "div" else float(numbers[0])
            return [
                Term(one.node, one.zero_point, one.scale * factor, one.bound, one.axis) for one in writer.terms(source)
            ]
        left, right = (_factor(writer, node, operand) for operand in node.args)
        args = (left.node, left.zero_point, right.node, right.zero_point)
        product = writer.insert(INTEGER_MUL, args, node, torch.int32)
        return [Term(product, 0, left.scale * right.scale, left.bound * right.bound)]


def _terms_of(writer: Writer, node: Node, operand: Any) -> tuple[Term, ...]:
    if isinstance(operand, Node) and operand.op != "get_attr":
        return writer.terms(operand)
    return (_constant(writer, node, operand, 24),)


def _factor(writer: Writer, node: Node, operand: Any) -> Term:
    if isinstance(operand, Node) and operand.op != "get_attr":
        return writer.single(operand, _FACTOR_BITS)
    return _constant(writer, node, operand, _FACTOR_BITS)


def _constant(writer: Writer, node: Node, operand: Any, bits: int) -> Term:
    """Return a stored tensor, or a number, as integers below 2^bits."""
    if not isinstance(operand, int | float | Node):
        raise GraphError(f"to_integer: {described(node)} reads {operand!r}, which is neither a tensor nor a number")
    values = stored_tensor(operand).double() if isinstance(operand, Node) else double(float(operand))
    return writer.constant(node, values, bits)
