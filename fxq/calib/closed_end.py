"""ClosedEnd: the values that lay exactly on the end of a histogram's first range, where its last bin is closed.

torch.histc and numpy count them in the last bin; once the range has grown, their edge is the start of the next one.
pytorch-quantization adds up what it counted, so they stay where they were: its numbers after growth need them apart.
Bins keep each value where its quotient puts it, which is what makes merging exact.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from fxq.calib.bins import Bins


@dataclass(frozen=True, eq=False)
class ClosedEnd:
    """``count`` values in bin ``end`` of bins of ``width`` are to be counted in the bin before it.

    Args:
        width: of the bins; in wider bins they lie on an edge only if that is a multiple of the width.
        end: number of the first bin behind the first range.
        count: int64, shape (), on the data's device.
    """

    width: float
    end: int
    count: Tensor

    @classmethod
    def of(cls, bins: Bins, end: int) -> Self:
        """Return what ``bins`` hold on their end before they grow."""
        return cls(bins.width, end, bins.counts[end:].sum())

    def applied(self, counts: Tensor, width: float) -> Tensor:
        """Return ``counts`` (on the CPU, from bin 0) with the values in the bin before the end."""
        ratio = width / self.width
        end = int(self.end / ratio)
        if ratio < 1 or self.end % ratio or len(counts) <= end:
            return counts
        counts = counts.clone()
        moved = self.count.cpu()
        counts[end - 1] += moved
        counts[end] -= moved
        return counts

    def joined(self, other: Self) -> Self:
        """Return both together; they are the ends of like first ranges."""
        return type(self)(self.width, self.end, self.count + other.count.to(self.count.device))
