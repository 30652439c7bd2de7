"""Three ways to a quantized version of a module of your own, and the way of all three to ONNX.

Run it: uv run python examples/own_module.py
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.nn import OnlyInputQuantized, WeightQuantized

INT8 = fxq.QuantDescriptor(num_bits=8)


class QuantLPPool2d(OnlyInputQuantized, nn.LPPool2d):
    """1. Only the input is quantized: nothing to write, for a module of torch's or of yours."""


class GainLinear(nn.Linear):
    """2. A float module of yours, trained; it stays as it is."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.gain = nn.Parameter(torch.full((out_features,), 2.0))

    def forward(self, input: Tensor) -> Tensor:
        """Return the gained outputs."""
        return F.linear(input, self.weight, self.bias) * self.gain


class QuantGainLinear(WeightQuantized, GainLinear):
    """2. The same with input and weight quantized."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the gained outputs, computed from quantized tensors."""
        return F.linear(self.input_quantizer(input), self.quantized_weight(), self.bias) * self.gain


class Similarity(nn.Module):
    """3. Anything else: quantizers by hand, called where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = fxq.TensorQuantizer(INT8), fxq.TensorQuantizer(INT8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the products of all rows of a and b."""
        return torch.matmul(self.left(a), self.right(b.transpose(-2, -1)))


class Net(nn.Module):
    """All three, and a layer that is left to fxq."""

    def __init__(self, trained: GainLinear) -> None:
        super().__init__()
        self.pool = QuantLPPool2d(2, 2, quant_desc_input=INT8)
        self.linear = QuantGainLinear.from_float(trained, input=INT8)  # shares the parameters of the float module
        self.similarity = Similarity()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return four scores for each row of similarities."""
        y = self.linear(self.pool(x).flatten(2))
        return self.head(self.similarity(y, y))


def main() -> None:
    torch.manual_seed(0)
    model = Net(GainLinear(16, 8)).eval()
    batches = list(torch.rand(4, 8, 3, 8, 8))

    # prepare keeps what you placed and adds the rest; calibrate fits all.
    prepared = fxq.prepare(model, batches[0], recipe="tensorrt")
    fxq.calibrate(prepared, batches)
    for path, module in prepared.named_modules():
        if isinstance(module, fxq.TensorQuantizer):
            print(f"{path:40} {module.extra_repr()}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.onnx"
        fxq.export_onnx(fxq.convert(prepared), path)
        session = onnxruntime.InferenceSession(path)
    with torch.no_grad():
        expected = prepared(batches[0]).numpy()
    found = session.run(None, {session.get_inputs()[0].name: batches[0].numpy()})[0]
    print(f"ONNX Runtime differs from the prepared model by at most {np.abs(found - expected).max():.1e}")


if __name__ == "__main__":
    main()
