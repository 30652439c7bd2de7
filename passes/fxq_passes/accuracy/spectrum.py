"""How the values of a tensor are spread, in two halves of the samples: enough to tell what a range costs them."""

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq_passes.accuracy.reader import halves, in_full

_BINS = 4096  # sixteen for each code of int8


class Spectrum:
    """Histograms of a tensor's values.

    Args:
        values: the tensor, a value for each batch.
    """

    def __init__(self, values: list[Tensor]) -> None:
        values = [one.detach() for one in values]  # that of a stored tensor is a parameter
        low = min(float(one.min()) for one in values)
        high = max(float(one.max()) for one in values)
        edges = torch.linspace(low, max(high, low + 1e-30), 2 * _BINS + 1, device=values[0].device)
        self._centres = edges[1::2]
        self._counts = [
            torch.stack([torch.histc(in_full(one), _BINS, low, high) for one in half]).sum(0) for half in halves(values)
        ]
        power = (torch.stack(self._counts).sum(0) * self._centres.square()).sum()
        self._power = power.clamp(min=torch.finfo(power.dtype).tiny)

    def error(self, quantizer: TensorQuantizer, half: int) -> float:
        """Return the squared error of the values of one half, over the power of those of both."""
        errors = (quantizer(self._centres) - self._centres).square()
        return float((errors * self._counts[half]).sum() / self._power)


def reaches(values: list[Tensor]) -> list[tuple[float, float]]:
    """Return how far each half of the samples reaches below and above 0."""
    ends = [[one.detach().aminmax() for one in half] for half in halves(values)]
    return [
        (max(0.0, *(-float(end.min) for end in half)), max(0.0, *(float(end.max) for end in half))) for half in ends
    ]
