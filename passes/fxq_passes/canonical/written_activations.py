"""Activations that a model writes out as a formula become the module that computes them.

``x * torch.sigmoid(x)`` is nn.SiLU, ``x * F.relu6(x + 3) / 6`` is nn.Hardswish: runtimes compute either in one kernel.
Step by step it would be several operations, with quantizers between them where the target quantizes products and sums.

A formula is taken apart into products ``constant * factor * factor`` and chains ``a * x + b``, so that neither the
order of its operands matters nor where its constants stand: numbers, or stored tensors of one element.

Sources: Elfwing et al. 2017, arXiv:1702.03118 (SiLU); Howard et al. 2019, arXiv:1905.02244 (hard swish); Hendrycks and
Gimpel 2016, arXiv:1606.08415 (GELU and its approximation by tanh); Misra 2019, arXiv:1908.08681 (Mish).
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from fxq import Rewriter
from fxq.graph import kind, only_reader, owner_path, why_altered
from fxq_passes.canonical.formulas import are_alike, calls, replace_formula
from fxq_passes.folding.computed_weights import constant_nodes, stored_value

_CLOSE = 1e-5  # relative: constants are written with six digits and more
_DEEPEST = 8  # operations from the end of a formula to its beginning
_ERF, _POWER = (torch.erf, torch.special.erf, "erf"), (torch.pow, operator.pow, "pow")


def activations_from_formulas(rw: Rewriter) -> None:
    """Replace each formula by its module, the outermost first."""
    formulas = _Formulas(rw)
    for node in reversed(rw.nodes(lambda node: kind(node) in ("mul", "div", "relu6", "clip"))):
        found = formulas.activation(node) if node.users else None
        if found is None or not are_alike(found[0], node):
            continue
        source, module = found
        path = f"{owner_path(node)}.{type(module).__name__.lower()}".lstrip(".")
        replace_formula(rw, node, source, module, path)


@dataclass
class _Product:
    """``constant`` times all of ``factors``."""

    constant: float = 1.0
    factors: list[Node] = field(default_factory=list)


class _Formulas:
    """Questions about what nodes compute. None stands for: something else."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw, self._stored = rw, constant_nodes(rw)

    def activation(self, node: Node) -> tuple[Node, nn.Module] | None:
        """Return what ``node`` computes an activation of, and its module."""
        product = self._product(node)
        if len(product.factors) == 1:
            gate = self._hard_sigmoid(product.factors[0], product.constant)
            return None if gate is None else (gate, nn.Hardsigmoid())
        if len(product.factors) != 2:
            return None
        for source, gate in (product.factors, product.factors[::-1]):
            module = self._gated(source, gate, product.constant)
            if module is not None:
                return source, module
        return None

    def _gated(self, source: Node, gate: Node, constant: float) -> nn.Module | None:
        """Return the module that computes ``constant * source * gate``."""
        if self._hard_sigmoid(gate, constant) is source:
            return nn.Hardswish()
        if _is(constant, 1):
            if kind(gate) == "sigmoid" and self._argument(gate) is source:
                return nn.SiLU()
            if kind(gate) == "tanh":
                soft = self._argument(gate)
                return nn.Mish() if soft is not None and self._softplus(soft) is source else None
        inner, factor, summand = self._affine(gate)
        if not _is(constant * factor, 0.5) or not _is(constant * summand, 0.5):
            return None
        if calls(inner, _ERF) and len(inner.all_input_nodes) == 1:
            is_same = any(
                argument is source and _is(slope, math.sqrt(0.5)) and shift == 0
                for argument, slope, shift in self._chain(inner.all_input_nodes[0])
            )
            return nn.GELU() if is_same else None
        if kind(inner) == "tanh" and self._is_cubic(self._argument(inner), source):
            return nn.GELU("tanh")
        return None

    def _hard_sigmoid(self, node: Node, constant: float) -> Node | None:
        """Return x where ``constant * node`` is clip(x / 6 + 1/2, 0, 1)."""
        clip, factor, summand = self._affine(node)
        if kind(clip) == "hardsigmoid" and summand == 0 and _is(constant * factor, 1):
            return self._argument(clip)
        bounds = self._bounds(clip)
        argument = self._argument(clip) if bounds is not None else None
        if bounds is None or argument is None:
            return None
        factor, summand = constant * factor, constant * summand
        low, high = (factor * bound + summand for bound in bounds)
        if abs(low) > _CLOSE or not _is(high, 1):
            return None
        for source, slope, shift in self._chain(argument):
            if _is(factor * slope, 1 / 6) and _is(factor * shift + summand, 0.5):
                return source
        return None

    def _is_cubic(self, node: Node | None, source: Node) -> bool:
        """Return whether ``node`` is sqrt(2 / pi) * (source + 0.044715 * source ** 3)."""
        if node is None:
            return False
        product, slope = self._product(node), math.sqrt(2 / math.pi)
        if len(product.factors) == 1:  # of a sum
            terms = [self._power(term, source) for term in self._terms(product.factors[0])]
            wanted = ((slope, 1), (slope * 0.044715, 3))
        elif len(product.factors) == 2 and source in product.factors:  # source * (1 + 0.044715 * source ** 2)
            other = next((one for one in product.factors if one is not source), source)
            inner, factor, summand = self._affine(other)
            power = self._power(inner, source)
            terms = [(summand, 0), None if power is None else (factor * power[0], power[1])]
            wanted = ((slope, 0), (slope * 0.044715, 2))
        else:
            return False
        found = sorted((power, product.constant * factor) for factor, power in filter(None, terms))
        return len(found) == len(terms) == 2 and all(
            power == exponent and _is(factor, one)
            for (power, factor), (one, exponent) in zip(found, wanted, strict=True)
        )

    def _power(self, node: Node, source: Node) -> tuple[float, int] | None:
        """Return c and n where ``node`` is c * source ** n."""
        product, exponent = self._product(node), 0
        for factor in product.factors:
            if factor is source:
                exponent += 1
            elif calls(factor, _POWER) and len(factor.args) == 2 and factor.args[0] is source:
                power = self._number(factor.args[1])
                if power not in (2, 3):
                    return None
                exponent += int(power)
            else:
                return None
        return product.constant, exponent

    def _terms(self, node: Node) -> list[Node]:
        operands = self._operands(node) if kind(node) == "add" else None
        return [one for one in operands or [] if isinstance(one, Node)]

    def _product(self, node: Node) -> _Product:
        found = _Product()
        self._multiply(node, found, 0)
        return found

    def _multiply(self, node: Node, found: _Product, depth: int) -> None:
        word = kind(node)
        is_step = word in ("mul", "div") and depth < _DEEPEST and (depth == 0 or only_reader(node) is not None)
        operands = self._operands(node) if is_step else None
        numbers = [self._number(one) for one in operands or []]
        if operands is None or (word == "div" and not numbers[1]):
            found.factors.append(node)
            return
        for position, (operand, number) in enumerate(zip(operands, numbers, strict=True)):
            if number is not None:
                found.constant *= 1 / number if word == "div" and position == 1 else number
            else:
                assert isinstance(operand, Node)
                self._multiply(operand, found, depth + 1)

    def _affine(self, node: Node) -> tuple[Node, float, float]:
        """Return x, a and b so that ``node`` is ``a * x + b``, and x nothing of that kind."""
        *_, last = self._chain(node)
        return last

    def _chain(self, node: Node) -> Iterator[tuple[Node, float, float]]:
        """Yield x, a and b so that ``node`` is ``a * x + b``: first the node itself, then each x further back."""
        factor, summand = 1.0, 0.0
        yield node, factor, summand
        for _ in range(_DEEPEST):
            word = kind(node)
            operands = self._operands(node) if word in ("mul", "div", "add", "sub") else None
            numbers = [self._number(one) for one in operands or []]
            if operands is None or numbers.count(None) != 1 or (word == "div" and not numbers[1]):
                return
            inner, number = operands[numbers.index(None)], next(one for one in numbers if one is not None)
            assert isinstance(inner, Node)
            if word == "mul":
                factor *= number
            elif word == "div":
                factor /= number
            elif word == "sub" and numbers[0] is not None:
                summand, factor = summand + factor * number, -factor
            else:
                summand += factor * (number if word == "add" else -number)
            node = inner
            yield node, factor, summand

    def _operands(self, node: Node) -> list[object] | None:
        """Return both operands of an operator; None where there are others."""
        return list(node.args) if node.op == "call_function" and len(node.args) == 2 and not node.kwargs else None

    def _number(self, operand: object) -> float | None:
        if isinstance(operand, int | float) and not isinstance(operand, bool):
            return float(operand)
        if not isinstance(operand, Node) or operand not in self._stored or self._rw.qat:
            return None
        value = stored_value(self._rw, operand)
        # With more dimensions than the source it would make a formula of another shape, which is none.
        return float(value) if value is not None and value.numel() == 1 else None

    def _argument(self, node: Node) -> Node | None:
        """Return what a module of torch, with nothing of the user's on it, is called on."""
        if node.op != "call_module" or why_altered(self._rw.module(node)) is not None:
            return None
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        return source if isinstance(source, Node) else None

    def _bounds(self, node: Node) -> tuple[float, float] | None:
        if node.op != "call_module" or kind(node) not in ("relu6", "clip"):
            return None
        module = self._rw.module(node)
        return float(module.min_val), float(module.max_val)

    def _softplus(self, node: Node) -> Node | None:
        if node.op == "call_module" and type(module := self._rw.module(node)) is nn.Softplus:
            return self._argument(node) if (module.beta, module.threshold) == (1, 20) else None
        is_plain = calls(node, (F.softplus,)) and len(node.args) == 1 and not node.kwargs
        return node.all_input_nodes[0] if is_plain else None


def _is(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=_CLOSE)
