"""The judge of sensitivity without a metric: how far a switchboard's model is from the float one, in dB."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fxq.batches import Inputs, call
from fxq.compare.figures import Sums
from fxq.compare.outputs import Named, copies, named_leaves
from fxq.errors import MetricError
from fxq.graph.switchboard import Switchboard


class SqnrJudge:
    """Compares the model of a switchboard with the float one on some samples.

    Args:
        board: left with all groups in float.
        samples: kept.

    Attributes:
        notes: what counts for nothing.

    Raises:
        MetricError: the model returns no floating-point tensor with a finite number, or one that is all NaN.
    """

    def __init__(self, board: Switchboard, samples: Sequence[Inputs]) -> None:
        self._gm, self._samples = board.gm, samples
        board.leave_in_float(board.groups)
        self._expected = self._outputs()
        if not any(value.is_floating_point() for one in self._expected for _, value in one):
            raise MetricError("the model returns no floating-point tensor, which has no SQNR: give metric=")
        known: dict[str, list[bool]] = {}  # is there a finite number, and is there NaN
        for name, value in (pair for one in self._expected for pair in one if pair[1].is_floating_point()):
            has = known.setdefault(name, [False, False])
            has[0], has[1] = has[0] or bool(value.isfinite().any()), has[1] or bool(value.isnan().any())
        for name, (has_number, has_nan) in known.items():
            if has_nan and not has_number:
                raise MetricError(
                    f"the float model's {name!r} holds no number but NaN on these samples, which has no SQNR: leave "
                    "out the batch that does it, or give metric="
                )
        if not any(has_number for has_number, _ in known.values()):
            raise MetricError(
                "the float model's outputs hold no finite number on these samples, which has no SQNR: give metric="
            )
        odd = {
            "NaN": [name for name, (_, has_nan) in known.items() if has_nan],
            "infinity": [name for name, (has_number, _) in known.items() if not has_number],
        }
        self.notes = [
            f"{what} in the float model's {', '.join(map(repr, names))} counts for nothing in the dB"
            for what, names in odd.items()
            if names
        ]

    def sqnr_db(self) -> float:
        """Return the SQNR of the worst output of the model as it is switched now."""
        sums: dict[str, Sums] = {}
        for expected, found in zip(self._expected, self._outputs(), strict=True):
            for (name, want), (_, have) in zip(expected, found, strict=True):
                sums.setdefault(name, Sums()).add(want, have)
        figures = [one.figures for one in sums.values() if one.figures is not None]
        # Where the float output is zero throughout, any error is all there is.
        values = [-math.inf if one.sqnr_db is None and one.mse else one.sqnr_db for one in figures]
        return min((one for one in values if one is not None), default=math.inf)

    def _outputs(self) -> list[Named]:
        found = []
        with torch.no_grad():
            for inputs in self._samples:
                # A model may write into its inputs, which are needed again.
                args, kwargs = copies(tuple(inputs))
                found.append(named_leaves(call(self._gm, *args, **kwargs), "output", Tensor))
        return found
