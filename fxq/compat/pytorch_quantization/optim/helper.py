"""Choose, group and freeze parameters by name, and round weights in place."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fxq.errors import InputError


def match_parameters(model: nn.Module, patterns: Sequence[str]) -> Iterator[nn.Parameter]:
    """Yield the parameters whose name contains one of the regular expressions."""
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            yield parameter


def group_parameters(
    model: nn.Module,
    patterns_list: Sequence[list[str]],
    lrs: Sequence[float] | None = None,
    momentums: Sequence[float] | None = None,
    weight_decays: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Return a group for each list of patterns, as an optimizer of torch takes them.

    Args:
        model: the parameters are taken by name, as :func:`match_parameters` does.
        patterns_list: no parameter may match two of the lists.
        lrs, momentums, weight_decays: None, or a value for each group.

    Raises:
        InputError: a list of patterns is no list, or there are more or fewer values than groups.
    """
    for patterns in patterns_list:
        if not isinstance(patterns, list):
            raise InputError(f"patterns_list must be list of list of patterns, got {patterns!r} in it")
    groups: list[dict[str, Any]] = [{"params": match_parameters(model, patterns)} for patterns in patterns_list]
    options = {
        "lr": ("lrs", lrs),
        "momentum": ("momentums", momentums),
        "weight_decay": ("weight_decays", weight_decays),
    }
    for option, (argument, values) in options.items():
        if values is None:
            continue
        if len(values) != len(groups):
            raise InputError(f"len({argument}) must match len(patterns_list): {len(values)} and {len(groups)}")
        for group, value in zip(groups, values, strict=True):
            group[option] = value
    return groups


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop the gradient of the parameters whose name contains one of the regular expressions."""
    for parameter in match_parameters(model, patterns):
        parameter.requires_grad = False


@torch.no_grad()
def quant_weight_inplace(model: nn.Module) -> None:
    """Replace each weight that has a weight quantizer by what the quantizer makes of it."""
    for module in model.modules():
        quantizer = getattr(module, "_weight_quantizer", None)
        if quantizer is not None and isinstance(getattr(module, "weight", None), torch.Tensor):
            module.weight.copy_(quantizer(module.weight))  # type: ignore[operator]
