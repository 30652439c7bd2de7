"""A softmax that reads a tensor, asked how much its shares err for a range of it.

What lies far below the largest value has no share, however far: there the lower end of a range may move up, and all
codes are left to the values that count. One that is not clipped spends most of them on classes that nobody asks for.
"""

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq_passes.accuracy.reader import halves, in_full

_USUAL_VALUES, _MOST_VALUES = 2**16, 2**20  # of one half: where rows are short, and where they are long


class SoftmaxReader:
    """Samples of what a softmax reads, and of the shares that it gives.

    Args:
        values: the tensor, a value for each batch; how many classes there are may differ.
        dim: along which the shares add up to 1; not 0, which counts samples.
        count: how many rows to sample; more where rows are short.
    """

    def __init__(self, values: list[Tensor], dim: int, count: int) -> None:
        self._rows = [_drawn(half, dim, count // 2) for half in halves(values)]
        self._wanted = [[rows.softmax(-1) for rows in half] for half in self._rows]
        self._power = sum(map(_mean_square, self._wanted)) / len(self._wanted)

    def error(self, quantizer: TensorQuantizer, half: int) -> float:
        """Return the squared error of the shares on one half of the samples, over their power on both."""
        pairs = zip(self._rows[half], self._wanted[half], strict=True)
        return _mean_square([quantizer(rows).softmax(-1) - wanted for rows, wanted in pairs]) / self._power


def _drawn(values: list[Tensor], dim: int, count: int) -> list[Tensor]:
    """Return rows drawn evenly from all batches: (rows, classes) of each, float32."""
    rows = [value.detach().movedim(dim, -1).reshape(-1, value.shape[dim]) for value in values]
    classes = max(one.shape[1] for one in rows)
    most = max(min(count, _MOST_VALUES // classes), _USUAL_VALUES // classes, 1)
    share = most / max(sum(map(len, rows)), most)
    generator, found = torch.Generator().manual_seed(0), list[Tensor]()
    for one in rows:
        chosen = torch.randperm(len(one), generator=generator)[: max(1, round(share * len(one)))]
        found.append(in_full(one[chosen.to(one.device)]))
    return found


def _mean_square(rows: list[Tensor]) -> float:
    """Return the mean square of a row."""
    total = torch.stack([one.double().square().sum() for one in rows]).sum()
    return float(total) / sum(map(len, rows))
