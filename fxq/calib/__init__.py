"""Calibrators: each watches batches of one tensor, merges with its like, and fits a range without the data."""

from fxq.calib.base import Calibrator
from fxq.calib.histogram import HistogramCalibrator
from fxq.calib.max import MaxCalibrator
from fxq.calib.minmax import MinMaxCalibrator
from fxq.calib.moving_average import MovingAverageMinMaxCalibrator

__all__ = [
    "Calibrator",
    "HistogramCalibrator",
    "MaxCalibrator",
    "MinMaxCalibrator",
    "MovingAverageMinMaxCalibrator",
]
