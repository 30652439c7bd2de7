"""Calibrators: each observes batches of one tensor, merges with its like, and fits a range without the data."""

from fxq.calib import fits as _builtin_fits  # noqa: F401 - registers the methods
from fxq.calib.base import Calibrator
from fxq.calib.histogram import Histogram, HistogramCalibrator
from fxq.calib.max import MaxCalibrator
from fxq.calib.minmax import MinMaxCalibrator
from fxq.calib.moving_average import MovingAverageMinMaxCalibrator
from fxq.quant.registry import fit_names

__all__ = [
    "Calibrator",
    "Histogram",
    "HistogramCalibrator",
    "MaxCalibrator",
    "MinMaxCalibrator",
    "MovingAverageMinMaxCalibrator",
    "fit_names",
]
