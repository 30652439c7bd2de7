"""A softmax that reads a tensor, asked how much its shares err for a range of it.

What lies far below the largest value has no share, however far: there the lower end of a range may move up, and all
codes are left to the values that count. One that is not clipped spends most of them on classes that nobody asks for.
"""

import torch
from torch import Tensor

from fxq import TensorQuantizer
from fxq_passes.accuracy.reader import halves, in_full

_MOST_VALUES = 2**16  # of one half


class SoftmaxReader:
    """Samples of what a softmax reads, and of the shares that it gives.

    Args:
        values: the tensor, a value for each batch.
        dim: along which the shares add up to 1.
        count: how many rows to sample; more where rows are short.
    """

    def __init__(self, values: list[Tensor], dim: int, count: int) -> None:
        self._rows = [_drawn(half, dim, count // 2) for half in halves(values)]
        self._wanted = [rows.softmax(-1) for rows in self._rows]
        self._power = torch.stack([one.square().mean() for one in self._wanted]).mean()

    def error(self, quantizer: TensorQuantizer, half: int) -> float:
        """Return the squared error of the shares on one half of the samples, over their power on both."""
        found = quantizer(self._rows[half]).softmax(-1)
        return float((found - self._wanted[half]).square().mean() / self._power)


def _drawn(values: list[Tensor], dim: int, count: int) -> Tensor:
    """Return rows drawn evenly from all batches: (rows, classes), float32."""
    rows = [value.detach().movedim(dim, -1).flatten(0, -2) for value in values]
    total, most = sum(map(len, rows)), max(count, _MOST_VALUES // rows[0].shape[-1])
    if total > most:
        generator = torch.Generator().manual_seed(0)
        shares = [max(1, round(most * len(one) / total)) for one in rows]
        drawn = [
            torch.randint(len(one), (share,), generator=generator) for one, share in zip(rows, shares, strict=True)
        ]
        rows = [one[index.to(one.device)] for one, index in zip(rows, drawn, strict=True)]
    return in_full(torch.cat(rows))
