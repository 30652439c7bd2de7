"""Calibrators: they collect statistics of a tensor and give its range."""

from fxq.compat.pytorch_quantization.calib.histogram import HistogramCalibrator
from fxq.compat.pytorch_quantization.calib.max import MaxCalibrator
from fxq.compat.pytorch_quantization.calib.weights import calibrate_weights

__all__ = ["HistogramCalibrator", "MaxCalibrator", "calibrate_weights"]
