"""Pass: one rewriting step. Subclass it, name it with ``@fxq.register_pass``, and put it in a recipe."""

import abc
from typing import ClassVar

from fxq.graph.rewriter import Rewriter
from fxq.stage import Stage
from fxq.tolerance import ROUNDING, Tolerance


class Pass(abc.ABC):
    """One step of a stage. A frozen dataclass: its fields are the options that a recipe can set.

    Attributes:
        name: the registered name; set by ``register_pass``.
        stage: the stage it works in.
        closes_stage: it has to see what all passes of its stage have done: ``Recipe.with_pass`` puts others before it.
        tolerance: how far the numbers of the graph may move: fxq.EXACT, fxq.ROUNDING, fxq.LSB(n) or fxq.ANY;
            ``prepare(verify=True)`` holds each pass to it, ``convert`` those behind calibration in any case. It means
            nothing for a CALIBRATED pass, which moves numbers on purpose.
        improves: a CALIBRATED pass that should make the quantized model more like the float one. It is measured on
            samples that no pass sees, and undone where it made things worse.
        corrects: a CALIBRATED pass that takes back the mean errors which others leave behind. Where one of these looks
            worse without it, both are judged once more with it.
        keeps_ranges: a CALIBRATED pass whose weights and biases make up for quantization, and so leave the activations
            where they were. Else the ranges behind what it changed are stale, and are fitted again.
        streams: a CALIBRATED pass that reads the batches once, as they come, and changes nothing but ranges: where all
            do, no sample is kept and no weight copied.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage]
    closes_stage: ClassVar[bool] = False
    tolerance: ClassVar[Tolerance] = ROUNDING
    improves: ClassVar[bool] = False
    corrects: ClassVar[bool] = False
    keeps_ranges: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, rw: Rewriter) -> None:
        """Edit the graph through ``rw``, with a reason for each edit and each refusal."""


def pass_summary(pass_type: type[Pass]) -> str:
    """Return the first line of a pass's docstring."""
    return (pass_type.__doc__ or "").strip().partition("\n")[0]


def describe_pass(step: Pass) -> str:
    """Return how an error calls a pass: its name and its class."""
    module = type(step).__module__
    return f"pass {step.name or type(step).__name__!r} ({module}.{type(step).__qualname__})"


__all__ = ["Pass", "Stage", "describe_pass", "pass_summary"]
