"""Swap the modules that have plans inside of them for their quantized versions."""

from dataclasses import dataclass

from torch import nn

from fxq import QuantDescriptor, Rewriter, TensorQuantizer
from fxq.graph import Plan, plans_by_module
from fxq.graph.modules import module_at
from fxq.nn import Quantized, WeightQuantized, computed_tensors, quantized_type


@dataclass(frozen=True)
class _Tied:
    """What the first of several modules with one weight tensor gave its quantizer."""

    path: str
    descriptor: QuantDescriptor
    quantizer: TensorQuantizer


def swap_modules(rw: Rewriter) -> None:
    """Swap each planned module once, with quantizers that are off until attach_observers: no number changes."""
    tied: dict[int, _Tied] = {}
    for path, plans in plans_by_module(rw.gm).items():
        module = module_at(rw.gm, path)
        if isinstance(module, Quantized):
            continue  # swapped before
        swapped = _swapped(module, plans)
        why = "; ".join(f"{slot}: {plan.descriptor}" for slot, plan in plans.items())
        if isinstance(swapped, WeightQuantized):
            why += _share_if_tied(tied, path, swapped)
        rw.replace_module(path, swapped, why)


def _swapped(module: nn.Module, plans: dict[str, Plan]) -> Quantized:
    descriptors = {slot: plan.descriptor for slot, plan in plans.items()}
    quantized = quantized_type(module)
    assert quantized is not None  # what was planned has one
    swapped = quantized.from_descriptors(module, descriptors)
    for found in swapped.modules():
        if isinstance(found, TensorQuantizer):
            found.disable()
    return swapped


def _share_if_tied(tied: dict[int, _Tied], path: str, swapped: WeightQuantized) -> str:
    """Give modules with one weight tensor and equal descriptors one quantizer; return what to say about it."""
    if computed_tensors(swapped):
        return ""  # each computes its own
    quantizer = swapped.weight_quantizer
    first = tied.setdefault(id(swapped.weight), _Tied(path, quantizer.descriptor, quantizer))
    if first.path == path or first.descriptor != quantizer.descriptor:
        return ""
    swapped._modules["_weight_quantizer"] = first.quantizer
    return f"; shared with {first.path!r}, whose weight it is too"
