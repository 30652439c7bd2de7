"""Ranges and the samples held out to judge passes by.

Ranges that were fitted without them are not those of a recipe that holds none out: what reaches furthest may be among
them, and would clip. So ranges take them in. But a wider range has coarser steps for all values, and what one sample
reaches others need not; a range stays as it was where the samples held out, the only ones that it was fitted without,
have less error with it all the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.data import Data
from fxq.graph.observers import only_observing, ranged, store_range
from fxq.nn import TensorQuantizer


def widen_observed(
    gm: GraphModule, observers: Mapping[str, TensorQuantizer], data: Data
) -> dict[str, tuple[Tensor, Tensor]]:
    """Let observers see the samples held out, and change their ranges by as much as that changes what they would fit.

    A range that is a share of what was fitted stays that share.

    Args:
        gm: calibrated; runs in float here, with its weights as they are.
        observers: some of its quantizers, by path; those without a range are left out.
        data: that holds the samples.

    Returns:
        The ranges before, by path, of those that changed.
    """
    fitted = {path: one.compute_calib_range() for path, one in observers.items() if one.has_range}
    known = {path: bounds for path, bounds in fitted.items() if bounds is not None}
    with only_observing(gm, {path: observers[path] for path in known}):
        data.feed_held_out(gm)
    before = {}
    for path, old in known.items():
        quantizer, new = observers[path], observers[path].compute_calib_range()
        if new is None or all(map(torch.equal, old, new)):
            continue
        low, high = quantizer.range
        before[path] = low.clone(), high.clone()
        # A symmetric range is (-amax, amax).
        now = (low, high)[-len(old) :]
        store_range(quantizer, [_in_proportion(*three) for three in zip(now, old, new, strict=True)])
    return before


def narrow_again(
    gm: GraphModule, observers: Mapping[str, TensorQuantizer], before: Mapping[str, tuple[Tensor, Tensor]], data: Data
) -> set[str]:
    """Give those ``observers`` their ranges ``before`` back whose tensors have less error with them on these samples.

    Args:
        gm: calibrated; runs in float here, with its weights as they are.
        observers: its quantizers, by path.
        before: what :func:`widen_observed` returned.
        data: that holds the samples.

    Returns:
        The paths of those that keep the wider range.
    """
    errors = {path: _Errors(observers[path], bounds) for path, bounds in before.items()}
    handles = [observers[path].register_forward_pre_hook(found) for path, found in errors.items()]
    try:
        with only_observing(gm, {}):
            data.feed_held_out(gm)
    finally:
        for handle in handles:
            handle.remove()
    narrow = {path for path, found in errors.items() if found.before < found.now}
    for path in narrow:
        store_range(observers[path], before[path])
    return set(before) - narrow


class _Errors:
    """A hook that adds up the squared error of what a quantizer reads: with the range before, and with that of now."""

    def __init__(self, quantizer: TensorQuantizer, before: tuple[Tensor, Tensor]) -> None:
        self._quantizers = [ranged(quantizer, *bounds) for bounds in (before, quantizer.range)]
        self.before = self.now = 0.0

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        before, now = (float((one(args[0]) - args[0]).float().square().sum()) for one in self._quantizers)
        self.before += before
        self.now += now


def _in_proportion(now: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return ``new``, or as large a share of it as ``now`` is of ``old``."""
    grown = new / torch.where(old == 0, torch.ones_like(old), old)
    return torch.where((old == 0) | (now == old), new, now * grown)
