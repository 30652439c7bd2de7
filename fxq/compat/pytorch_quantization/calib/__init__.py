"""Calibrators: they collect statistics of a tensor and give its range."""

from fxq.compat.pytorch_quantization.calib.histogram import HistogramCalibrator, calibrate_weights
from fxq.compat.pytorch_quantization.calib.max import MaxCalibrator

__all__ = ["HistogramCalibrator", "MaxCalibrator", "calibrate_weights"]
