"""Quantization without data: "dynamic" for speed, "weight_only" for size, on a transformer encoder and an LSTM tagger.

Sizes and speeds are those of ONNX Runtime on one core; SNR compares the outputs with the float model's. On networks
as small as these, int8 pays less than on large ones: uv run python -m benchmarks dynamic weight_only.

Run it: uv run python examples/without_data.py
"""

import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import fxq

# Four bits in linear layers and attention, with a scale for each 64 inputs of a row; in an LSTM, with one for each row.
IN_BLOCKS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0, block_size=64))
IN_ROWS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
RECIPES = {
    "dynamic": fxq.recipe("dynamic"),
    "weight_only": fxq.recipe("weight_only"),
    "weight_only, int4 by rule": fxq.recipe("weight_only").with_rules(
        (nn.Linear, IN_BLOCKS), (nn.MultiheadAttention, IN_BLOCKS), (nn.LSTM, IN_ROWS)
    ),
}


class Encoder(nn.Module):
    """A layer of torch's transformer."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        """Return twenty scores for each token."""
        return self.head(self.layers(x))


class Tagger(nn.Module):
    """An LSTM that reads both ways."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * width, 20)

    def forward(self, x: Tensor) -> Tensor:
        """Return twenty scores for each token."""
        return self.tags(self.lstm(x)[0])


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def latency_ms(runtime: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    def once() -> float:
        start = time.perf_counter()
        runtime.run(None, {runtime.get_inputs()[0].name: x})
        return 1000 * (time.perf_counter() - start)

    return median(once() for _ in range(15))


def measure(model: nn.Module, x: Tensor, folder: Path) -> None:
    float_path = folder / "float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own calls
        torch.onnx.export(model, (x,), float_path, external_data=False, verbose=False)
    in_float = session(float_path)
    expected = in_float.run(None, {in_float.get_inputs()[0].name: x.numpy()})[0]
    print(f"{type(model).__name__:28} {float_path.stat().st_size / 1e6:6.2f} MB")
    for index, (name, recipe) in enumerate(RECIPES.items()):
        path = folder / f"{index}.onnx"
        converted = fxq.quantize(model, recipe=recipe, example_inputs=x)  # no data
        size = fxq.export_onnx(converted, path, dynamic_batch=False).size_bytes
        runtime = session(path)
        found = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})[0]
        snr_db = 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum())
        speed = latency_ms(in_float, x.numpy()) / latency_ms(runtime, x.numpy())
        print(f"  {name:26} {size / 1e6:6.2f} MB  {snr_db:5.1f} dB  {speed:.2f} times as fast")


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 256)
    for model in (Encoder().eval(), Tagger().eval()):
        with tempfile.TemporaryDirectory() as folder:
            measure(model, x, Path(folder))


if __name__ == "__main__":
    main()
