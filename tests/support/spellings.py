"""Two models that compute the same, spelled in two ways: they must be quantized alike."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxq
from fxq.graph import MOVES_DATA

TARGETS = ("tensorrt", "onnxruntime", "openvino")


def placement(prepared: nn.Module) -> list[str]:
    """Return what is quantized, by the kind of the operation that reads it; what moves data passes it on."""
    nodes = [node for node in fxq.explain(prepared).nodes if node.kind not in MOVES_DATA]
    return sorted(f"{node.kind} {one.role}: {one.descriptor}" for node in nodes for one in node.quantized)


def converted(model: nn.Module, inputs: tuple[Any, ...], target: str) -> tuple[nn.Module, nn.Module]:
    """Return what is prepared for a target, each pass held to its tolerance, and what becomes of it."""
    prepared = fxq.prepare(copy.deepcopy(model).eval(), inputs, recipe=target, verify=True)
    fxq.calibrate(prepared, [inputs], progress=False)
    return prepared, fxq.convert(prepared)


def assert_alike(
    spelled: nn.Module, other: nn.Module, inputs: Tensor | tuple[Any, ...], targets: Sequence[str] = TARGETS
) -> None:
    """Check that both compute the same, get the same quantizers, and compute the same with integers.

    Args:
        spelled: the model in the spelling that is known to work.
        other: the same model with the same weights, spelled otherwise.
        inputs: a tensor or positional inputs.
        targets: names.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(*inputs), spelled.eval()(*inputs), rtol=1e-4, atol=1e-5)
        for target in targets:
            (first, first_result), (second, result) = (converted(one, inputs, target) for one in (spelled, other))
            assert placement(second) == placement(first), target
            assert placement(first), target
            wanted, found = first_result(*inputs), result(*inputs)
            # Sums in another order: a value here and there is rounded to the neighbouring integer.
            assert (found - wanted).abs().mean() < 0.02 * wanted.std(), target
