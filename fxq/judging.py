"""How good the quantized model is while its passes run, on the samples held out; and what it was before each."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq.batches import call
from fxq.compare.outputs import copies
from fxq.data import Data
from fxq.graph.data_stage import DataStage
from fxq.graph.float_model import in_float
from fxq.graph.snapshot import Snapshot
from fxq.measured import Measured
from fxq.nn.quantized_layer import weights_quantized_once
from fxq.passbase import Pass
from fxq.record import Record

NOTHING_TO_SEE = "the model returns no finite floating-point value"
_FEWEST_TO_JUDGE_BY = 4
_ALL_WRONG = 1e150  # finite, so that models with as many such values can be compared by their others


class Corrected(NamedTuple):
    """How good the model would be with a corrector behind it."""

    corrector: Pass
    measured: Measured


@dataclass(frozen=True)
class Saved:
    """The model as it was, how good it was, also behind a corrector where that was tried, and what was noted of it."""

    measured: Measured
    corrected: "Corrected | None"
    snapshot: Snapshot
    notes: DataStage
    record: Record
    judge: "Judge"

    def restore(self, record: Record) -> None:
        """Put it back, and take out of ``record`` what was written since."""
        self.snapshot.restore()
        self.judge.stage.become(self.notes.copy())
        record.become(self.record.copy())
        self.judge.measured, self.judge.corrected = self.measured, self.corrected


class Judge:
    """Compares the quantized model with the float one on the samples held out.

    Attributes:
        stage: the data, and the float model.
        measured: how good the model is; None where that is not known.
        corrected: how good it would be with a corrector behind it; None where that is not known.
        notes: what to say of its judgements.
        seconds: that measuring took until now.
    """

    def __init__(self, gm: GraphModule, stage: DataStage) -> None:
        self._gm, self.stage = gm, stage
        self._expected: list[list[Tensor]] | None = None
        self.notes: list[str] = []
        self.measured: Measured | None = None
        self.corrected: Corrected | None = None
        self.seconds = 0.0

    def save(self, record: Record) -> Saved | None:
        """Return the model as it is now; None where nothing tells how good it is."""
        measured = self.look()
        if measured is None:
            return None
        return Saved(
            measured, self.corrected, Snapshot(self._gm, has_weights=True), self.stage.copy(), record.copy(), self
        )

    def forget(self) -> None:
        """The model is another now."""
        self.measured = self.corrected = None

    @property
    def samples(self) -> int:
        """How many samples were held out."""
        data = self.stage.data
        return 0 if data is None else sum(inputs.samples or 1 for inputs in data.judging(self._gm))

    @property
    def has_enough(self) -> bool:
        """Are there enough samples to judge by? Fewer hardly say how others scatter."""
        return self.samples >= _FEWEST_TO_JUDGE_BY

    @property
    def can_judge(self) -> bool:
        """Are there enough samples that tell how good the model is?"""
        return self.has_enough and self.look() is not None

    @property
    def why_not(self) -> str:
        """Why it cannot, in words."""
        data = self.stage.data
        if self.has_enough:
            return f"{NOTHING_TO_SEE} to judge by"
        if data is not None and data.held_out == 0:
            return "no sample was held out to judge by (held_out=0)"
        return f"{0 if data is None else data.seen} samples are too few to judge by ({_enough(data)} would do)"

    def look(self) -> Measured | None:
        """Return how far the quantized model is from the float one now; None where nothing tells."""
        if self.measured is None:
            start = time.perf_counter()
            self.measured = self._measure()
            self.seconds += time.perf_counter() - start
        return self.measured

    def _measure(self) -> Measured | None:
        if not self.samples or self.stage.weights is None:
            return None
        if self._expected is None:
            with in_float(self._gm, self.stage.weights):
                self._expected = list(self._outputs())
        if not any(bool(torch.isfinite(value).any()) for batch in self._expected for value in batch):
            return None
        weights = _weights(self._expected)
        signal = sum(
            weight * _power(wanted) for batch in self._expected for weight, wanted in zip(weights, batch, strict=False)
        )
        by_batch = []
        assert self.stage.data is not None
        inputs = self.stage.data.judging(self._gm)
        for one, expected, found in zip(inputs, self._expected, self._outputs(), strict=True):
            errors = [
                _squared_error(want, got, weight)
                for weight, (want, got) in zip(weights, zip(expected, found, strict=True), strict=False)
            ]
            by_batch.append(_by_sample(errors, one.samples or 1))
        noise = torch.cat(by_batch)
        total = float(noise.sum())
        if total == 0:
            return Measured(math.inf, noise)
        is_lost = not signal or total >= _ALL_WRONG
        return Measured(-math.inf if is_lost else 10 * math.log10(signal / total), noise)

    def _outputs(self) -> Iterator[list[Tensor]]:
        """Yield the floating-point tensors that the model returns, batch by batch."""
        assert self.stage.data is not None
        with torch.no_grad(), weights_quantized_once(self._gm):
            for inputs in self.stage.data.judging(self._gm):
                # A model may write into its inputs, which are needed again.
                args, kwargs = copies(tuple(inputs))
                leaves = pytree.tree_leaves(call(self._gm, *args, **kwargs))
                yield [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _enough(data: Data | None) -> int:
    """Return of how many samples enough are held out."""
    return math.ceil(_FEWEST_TO_JUDGE_BY / (0.125 if data is None else data.held_out))


def _weights(expected: list[list[Tensor]]) -> list[float]:
    """Return what the squares of each output count: its power is that of any other, whatever its unit is.

    Boxes in pixels would otherwise outweigh the probabilities beside them.
    """
    counts = set(map(len, expected))
    powers = [sum(map(_power, one)) for one in zip(*expected, strict=True)] if len(counts) == 1 else [0.0]
    if len(powers) == 1 or not any(powers) or not math.isfinite(sum(powers)):
        return [1.0] * max(counts)
    return [1 / (power or max(powers)) for power in powers]


def _power(value: Tensor) -> float:
    return float(value.double().nan_to_num(0.0, 0.0, 0.0).square().sum())


def _squared_error(want: Tensor, got: Tensor, weight: float) -> Tensor:
    """Return ``weight`` times that of each value.

    What is not finite in float does not count; what is not finite in the quantized model alone is all wrong.
    """
    error = torch.where(torch.isfinite(want), want.double() - got.double(), 0.0)
    return (weight * error.square()).nan_to_num(nan=_ALL_WRONG, posinf=_ALL_WRONG)


def _by_sample(errors: list[Tensor], samples: int) -> Tensor:
    """Return the sum of ``errors`` for each sample; their sum alone where a tensor does not count samples.

    The first dimension of their number counts them: some models put time before it.
    """
    if all(samples in error.shape for error in errors):
        first = [error.movedim(error.shape.index(samples), 0) for error in errors]
        return torch.stack([error.reshape(samples, -1).sum(1) for error in first]).sum(0).cpu()
    return torch.stack([error.sum() for error in errors]).sum().reshape(1).cpu()
