"""Training that ruins a range is stopped at the next call, and told apart from training that fails in float as well."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxq.errors import RangeError
from fxq.module_tree import all_modules, named_modules, named_parameters
from fxq.nn import TensorQuantizer


class RangeWatch:
    """A forward pre-hook: looks at the ranges that training moves, in each call in training mode.

    Not while torch.compile traces it.
    """

    def __init__(self) -> None:
        self._had_nan: Tensor | None = None  # did the inputs of the last call hold NaN?

    def __call__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Raise a RangeError for a range that is not positive or not finite, by the name of its quantizer."""
        if not model.training or torch.compiler.is_compiling():
            return
        check_ranges(model, self._had_nan)
        floats = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self._had_nan = torch.stack([leaf.detach().isnan().any().cpu() for leaf in floats]).any() if floats else None


def watch_ranges(model: nn.Module) -> None:
    """Let ``model`` look at its ranges before each call in training mode."""
    model.register_forward_pre_hook(RangeWatch())


def stop_watching(model: nn.Module) -> None:
    """Undo :func:`watch_ranges`."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, RangeWatch):
            del model._forward_pre_hooks[key]


def check_ranges(model: nn.Module, had_nan: Tensor | None = None) -> None:
    """Raise a RangeError if training made a range of ``model`` negative or not finite, or a learned one 0.

    Args:
        model: with quantizers.
        had_nan: whether the inputs of the last call held NaN; bool of shape ().
    """
    moved = dict(_moved_ranges(model))
    if not moved:
        return
    # One look at all of them: each would wait for the GPU.
    device = next(iter(moved.values())).device
    if bool(_is_valid(torch.cat([bound.flatten().to(device) for bound in moved.values()]))):
        return
    bad = [path for path, bound in moved.items() if not bool(_is_valid(bound))]
    found = model.get_submodule(bad[0])
    assert isinstance(found, TensorQuantizer)
    worst = min(float(_local(bound).detach().min()) for bound in found.bounds)
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise RangeError(f"training made the range of quantizer {bad[0]!r}{more} {worst:g}: {_reason(model, had_nan)}")


def _reason(model: nn.Module, had_nan: Tensor | None) -> str:
    ranges = {
        id(bound) for found in all_modules(model) if isinstance(found, TensorQuantizer) for bound in found.parameters()
    }
    for path, parameter in named_parameters(model):
        if id(parameter) not in ranges and not bool(torch.isfinite(_local(parameter)).all()):
            cause = (
                "the input of the call before held NaN"
                if had_nan is not None and bool(had_nan)
                else ("its loss or gradients were not finite")
            )
            return (
                f"{path!r} is not finite either, so a step was taken that fails in float as well: {cause}. Look at the "
                "data, the loss and the learning rate, and skip such steps; quantizers make no NaN of finite gradients"
            )
    return (
        "the weights are finite, so quantizing did it. Give ranges a lower learning rate (a parameter group of those "
        "named '_amax'), or keep them with fxq.freeze_ranges(prepared); then start from the last checkpoint"
    )


def _moved_ranges(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the bounds that training moves, by the paths of their quantizers; those of affine ranges as magnitudes.

    One that it closed is -inf.
    """
    for path, found in named_modules(model):
        if isinstance(found, TensorQuantizer) and found.is_enabled and (found.learn_amax or found.is_tracking):
            bounds = [_local(bound).detach() for bound in found.bounds]
            if not bounds:
                continue
            bound = bounds[0] if len(bounds) == 1 else torch.stack(bounds).abs()
            # A channel may be off. Where all are, nothing is left, unless that is what calibration saw.
            is_whole = 0 < bound.numel() == found.bounds[0].numel()
            must_be_open = found.learn_amax and not found.began_at_zero and is_whole
            yield path, torch.where(bound.amax() > 0, bound, -torch.inf) if must_be_open else bound


def _is_valid(bound: Tensor) -> Tensor:
    return ((bound >= 0) & (bound < torch.inf)).all()


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process has."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found
