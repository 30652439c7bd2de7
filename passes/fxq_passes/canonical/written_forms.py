"""Operations in the words that later passes know: sums as additions, products as linear layers or matrix products.

Each is a Python function with the signature of torch's, to be traced with the shapes of a call. ``is_stored`` says that
the second factor is computed from stored tensors alone: then it is a weight.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Callable[..., Tensor]


def add(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``input + alpha * other``."""
    return input + other * alpha


def subtract(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``input - alpha * other``."""
    return input - other * alpha


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack(tensors).sum(0)``."""
    return functools.reduce(operator.add, tensors)


def addmm(is_stored: bool) -> Form:
    """``beta * input + alpha * mat1 @ mat2``: a linear layer where mat2 is stored, as GPT-2 has it."""

    def form(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if is_stored and input.dim() == 1 and beta == 1 and alpha == 1:
            return F.linear(mat1, mat2.t(), input)
        return _scaled(torch.matmul(mat1, mat2), alpha) + _scaled(input, beta)

    return form


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """``beta * input + alpha * batch1 @ batch2``."""
    return _scaled(torch.matmul(batch1, batch2), alpha) + _scaled(input, beta)


def einsum_form(equation: str, is_stored: bool) -> Form | None:
    """Return a function of the two operands of an einsum: one product; None where it is none.

    Args:
        equation: with an output and without ellipsis, each label at most once in each term.
        is_stored: the second operand is a weight.
    """
    terms, arrow, output = equation.replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    labels = set(first) | set(second)
    summed = [label for label in first if label in second and label not in output]
    is_product = arrow and comma and summed and set(output) <= labels and labels - set(output) == set(summed)
    if not is_product or not all(term.isalpha() and len(set(term)) == len(term) for term in (first, second, output)):
        return None
    batch = [label for label in output if label in first and label in second]
    rows, columns = ([label for label in output if label in term and label not in batch] for term in (first, second))
    if is_stored and batch:
        is_stored = False

    def form(left: Tensor, right: Tensor) -> Tensor:
        sizes = dict(zip(second, right.shape, strict=True)) | dict(zip(first, left.shape, strict=True))
        if is_stored:
            left = _joined(_permuted(left, first, [*rows, *summed]), len(rows), len(summed))
            weight = _joined(_permuted(right, second, [*columns, *summed]), len(columns), len(summed))
            weight = weight.flatten(0, len(columns) - 1) if len(columns) > 1 else weight
            weight = weight if columns else weight.unsqueeze(0)
            product = F.linear(left, weight)
        else:
            left = _joined(_permuted(left, first, [*batch, *rows, *summed]), len(batch + rows), len(summed))
            right = _joined(_permuted(right, second, [*batch, *summed, *columns]), len(batch + summed), len(columns))
            left = _matrix(left, len(batch), len(rows))
            right = _matrix(right, len(batch), len(summed))
            product = torch.matmul(left, right)
        found = [*([] if is_stored else batch), *rows, *columns]
        if len(found) != product.dim() or not columns or not rows:
            product = product.reshape([sizes[label] for label in found])
        return _permuted(product, "".join(found), list(output))

    return form


def _permuted(tensor: Tensor, labels: str, order: list[str]) -> Tensor:
    places = [labels.index(label) for label in order]
    return tensor if places == list(range(len(places))) else tensor.permute(places)


def _joined(tensor: Tensor, kept: int, joined: int) -> Tensor:
    """Join the last dimensions, behind the ``kept`` first ones; none become one of size 1."""
    if joined == 0:
        return tensor.unsqueeze(-1)
    return tensor.flatten(kept) if joined > 1 else tensor


def _matrix(tensor: Tensor, batch: int, joined: int) -> Tensor:
    """Join the dimensions between those of the batch and the last one."""
    if joined == 0:
        return tensor.unsqueeze(-2)
    return tensor.flatten(batch, batch + joined - 1) if joined > 1 else tensor


def _scaled(tensor: Tensor, factor: Any) -> Tensor:
    return tensor if factor == 1 else tensor * factor
