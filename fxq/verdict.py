"""Is the quantized model good enough? A warning where it is not, an error where that was asked for."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from fxq.compare.quality import Quality, is_decibels
from fxq.compare.worst_layers import LayerLoss
from fxq.coverage import Coverage
from fxq.errors import AccuracyError, InputError


def check_least(min_sqnr_db: Any) -> None:
    """Raise an InputError for what no SQNR can be compared with; None is what the recipe says."""
    if min_sqnr_db is not None and not is_decibels(min_sqnr_db):
        raise InputError(f"min_sqnr_db must be a number of dB, or None for what the recipe says, got {min_sqnr_db!r}")


def judge(  # noqa: PLR0913 - all that the message tells
    what: str,
    quality: Quality,
    coverage: Coverage,
    least_db: float,
    strict: bool,
    find_worst: Callable[[], Sequence[LayerLoss]],
    stacklevel: int = 2,
) -> None:
    """Say so where an output is further from the float model than ``least_db`` allows.

    Args:
        what: was measured, such as "the converted model".
        quality: what it was found to be.
        coverage: which layers compute with integers.
        least_db: the lowest SQNR that is nobody's concern.
        strict: raise, do not warn.
        find_worst: called only where the message needs it.
        stacklevel: of the warning.

    Raises:
        AccuracyError: it is too low, and ``strict`` says to stop.
    """
    low = [output for output in quality.outputs if output.is_below(least_db)]
    if not low:
        return
    named = ", ".join(f"{output.name!r} has {output}" for output in low)
    losses = ", ".join(map(str, find_worst()))
    message = (
        f"{what} is far from {quality.against} on {quality.samples} samples: {named}; the least asked for is "
        f"{least_db:g} dB. {coverage}. {f'Most is lost in {losses}. ' if losses else ''}"
        "Check that the calibration data is what the model will see (preprocessing, more batches); then leave the "
        'layers that lose most in float, take accuracy="best", or calibrate with another calibrator '
        "(entropy, mse, percentile). print(fxq.explain(model)) shows every range. "
        "min_sqnr_db= says what is good enough"
    )
    if strict:
        raise AccuracyError(message)
    warnings.warn(message, stacklevel=stacklevel + 1)
