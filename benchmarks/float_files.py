"""The float file that benchmarks compare with, and how far outputs are apart."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# The lowest with Gelu, which runs as one kernel.
FLOAT_OPSET = 20


def write_float(model: nn.Module, inputs: Tensor, path: Path, opset: int = FLOAT_OPSET) -> None:
    """Write the model as torch does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own calls
        torch.onnx.export(model, (inputs,), path, opset_version=opset, verbose=False, external_data=False)


def signal_to_noise_db(exact: np.ndarray, other: np.ndarray) -> float:
    """Return 10 log10 of the power of ``exact`` over that of the difference; infinite where there is none."""
    noise = np.square(exact - other).mean()
    return float(10 * np.log10(np.square(exact).mean() / noise)) if noise else float("inf")
