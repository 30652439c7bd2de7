"""Ranges in a state dict: checked, and shaped as the quantizer that takes them keeps them.

A range is loaded into a quantizer that has one and into one that has none. What does not fit is named by its full key
in the error that ``load_state_dict`` raises; a range that is absent, or that no quantizer takes, is a missing or an
unexpected key, as everywhere in torch.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxq.nn.ranges import expected_shape, is_bound_shape
from fxq.quant.blocks import block_shape
from fxq.quant.descriptor import QuantDescriptor


def fitted_ranges(
    state_dict: Mapping[str, Any], prefix: str, kept: Mapping[str, Tensor | None], descriptor: QuantDescriptor
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the ranges of one quantizer that ``state_dict`` holds, by their names, and what is wrong with them.

    Args:
        state_dict: of the whole model; it is not modified.
        prefix: of the quantizer, such as ``"conv1._weight_quantizer."``.
        kept: what the quantizer holds now, by name: ``_amax``, or ``_low`` and ``_high``.
        descriptor: that of the quantizer.
    """
    if descriptor.is_dynamic:  # it takes no range: torch reports the key as unexpected
        return {}, []
    names = [name for name in kept if prefix + name in state_dict]
    if names and len(names) < len(kept):
        absent = next(name for name in kept if name not in names)
        return {}, [f"{prefix}{absent} is missing: an affine range needs both _low and _high"]
    found, errors = {}, []
    for name in names:
        loaded = state_dict[prefix + name]
        expected = _misfit(loaded, kept[name], descriptor)
        if expected:
            errors.append(f"{prefix}{name} has shape {tuple(loaded.shape)}, expected {expected}")
            continue
        found[name] = loaded.detach().float().reshape(_shape(loaded, kept[name], descriptor))
    return found, errors or _value_errors(found, prefix, descriptor)


def weight_range_errors(
    state_dict: Mapping[str, Any], prefix: str, weight: Tensor, descriptor: QuantDescriptor
) -> list[str]:
    """Return what is wrong with the ranges in ``state_dict`` of a quantizer that is known to read ``weight``.

    The quantizer itself, while it has no range, cannot tell how many channels it will see.
    """
    expected = _range_shape(weight, descriptor)
    errors = []
    for name in ("_amax", "_low", "_high"):
        loaded = state_dict.get(prefix + name)
        if loaded is None or not is_bound_shape(loaded, descriptor):
            continue  # the quantizer reports the latter
        is_flat = loaded.dim() == 1 and len(descriptor.axes) == 1 and loaded.numel() == math.prod(expected)
        is_one = loaded.numel() == 1 and descriptor.block_size is None
        if not (is_one or is_flat or tuple(loaded.shape) == expected):
            errors.append(f"{prefix}{name} has shape {tuple(loaded.shape)}, expected {expected}")
    return errors


def _value_errors(found: Mapping[str, Tensor], prefix: str, descriptor: QuantDescriptor) -> list[str]:
    """Return what is wrong with the values of ranges that have the right shapes."""
    if any(bound.is_meta for bound in found.values()):
        return []
    for name, bound in found.items():
        if not bool(torch.isfinite(bound).all()):
            return [f"{prefix}{name} is not finite: calibrate again, without NaN and infinity in the data"]
    # Training may drive a learned range below zero, and up again.
    if "_amax" in found and not descriptor.learn_amax and bool((found["_amax"] < 0).any()):
        return [f"{prefix}_amax is negative: it is the largest |x|"]
    if "_low" in found and found["_low"].shape != found["_high"].shape:
        shapes = tuple(found["_low"].shape), tuple(found["_high"].shape)
        return [f"{prefix}_low has shape {shapes[0]} and _high {shapes[1]}: they must have one shape"]
    if "_low" in found and bool((found["_low"] > found["_high"]).any()):
        return [f"{prefix}_low is more than _high: the range is empty"]
    return []


def _range_shape(weight: Tensor, descriptor: QuantDescriptor) -> tuple[int, ...]:
    if descriptor.block_size is not None:
        return block_shape(weight, descriptor.block_size)
    kept = {axis % weight.dim() for axis in descriptor.axes if -weight.dim() <= axis < weight.dim()}
    return tuple(size if dim in kept else 1 for dim, size in enumerate(weight.shape))


def _misfit(loaded: Tensor, kept: Tensor | None, descriptor: QuantDescriptor) -> str:
    """Return the shape that was expected, in words; nothing when the loaded one fits."""
    if not is_bound_shape(loaded, descriptor):
        return f"a range {expected_shape(descriptor)}"
    if kept is not None and _shape(loaded, kept, descriptor) != tuple(kept.shape):
        return str(tuple(kept.shape))
    return ""


def _shape(loaded: Tensor, kept: Tensor | None, descriptor: QuantDescriptor) -> tuple[int, ...]:
    if not descriptor.axes:
        return () if kept is None else tuple(kept.shape)
    if kept is not None and loaded.numel() == kept.numel() and len(descriptor.axes) == 1 and not descriptor.block_size:
        return tuple(kept.shape)  # flat and (1, C, 1, 1) are the same range
    return tuple(loaded.shape)
