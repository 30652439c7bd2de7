"""The PyTorch blog's "Practical Quantization in PyTorch", section by section, as one writes it with fxq.

There: observers, QConfig, fuse_modules, stubs, prepare, convert, numeric suite. Here: calibrators, descriptors, rules,
and a graph in which fusing and placing are passes. Where matplotlib is installed, its plots are written here as well:
schemes.png and layers.png. Run it: uv run --extra plot python examples/practical_quantization.py
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import fxq
from fxq.calib import Calibrator, HistogramCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator
from fxq.quant.affine import affine_params
from fxq.quant.affine_range import fake_affine_tensor_quant

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
UINT8 = {"num_bits": 8, "unsigned": True}


@torch.no_grad()
def sqnr_db(exact: Tensor, quantized: Tensor) -> float:
    return float(20 * torch.log10(exact.norm() / (exact - quantized).norm()))


def observers(inputs: list[Tensor]) -> None:
    """MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver: calibrators of the same names."""
    for calibrator in (
        MinMaxCalibrator(**UINT8),
        MovingAverageMinMaxCalibrator(**UINT8),
        HistogramCalibrator(**UINT8, symmetric=False),
    ):
        scale, zero_point = observed(calibrator, inputs)
        print(f"  {type(calibrator).__name__:30} scale {scale:.5f}, zero point {int(zero_point)}")


def observed(calibrator: Calibrator, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """obs(x), obs.calculate_qparams()."""
    for x in inputs:
        calibrator.observe(x)
    return affine_params(*calibrator.fit(), 0, 255)


def affine_and_symmetric(inputs: list[Tensor]) -> None:
    """torch.per_tensor_affine, torch.per_tensor_symmetric: the option ``symmetric``; get_affine_range: calibrators."""
    for symmetric in (False, True):
        quantizer = fxq.TensorQuantizer(
            fxq.QuantDescriptor(calibrator="moving_average", symmetric=symmetric), if_quant=False, if_calib=True
        )
        for x in inputs:
            quantizer(x)
        quantizer.load_calib_range()
        scheme = "symmetric" if symmetric else "affine"
        print(f"  {scheme:9} scale {float(quantizer.scale):.5f}, zero point {int(quantizer.zero_point)}")
    tensors = {
        "activations": torch.distributions.Pareto(1, 10).sample((1, 1024)),
        "weights": torch.distributions.Normal(0, 0.12).sample((3, 64, 7, 7)),
    }
    if HAS_MATPLOTLIB:
        plot_schemes(tensors, "schemes.png")
    for name, x in tensors.items():
        affine = fake_affine_tensor_quant(x, x.min(), x.max(), 8, unsigned=True)
        symmetric = fxq.fake_tensor_quant(x, x.abs().max())
        print(f"  {name:12} affine {sqnr_db(x, affine):5.1f} dB, symmetric {sqnr_db(x, symmetric):5.1f} dB")


def plot_schemes(tensors: dict[str, Tensor], path: str) -> None:
    """The notebook's four histograms, each with the range that a scheme gives it."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - not installed everywhere

    figure = Figure(figsize=(9, 6), layout="constrained")
    for row, (name, x) in zip(figure.subplots(len(tensors), 2), tensors.items(), strict=True):
        for axes, symmetric in zip(row, (False, True), strict=True):
            calibrator = MinMaxCalibrator(num_bits=8)
            calibrator.observe(x)
            low, high, amax = (float(bound) for bound in (*calibrator.fit(), x.abs().max()))
            axes.hist(x.flatten().numpy(), density=True, bins=100)
            for bound in (-amax, amax) if symmetric else (low, high):
                axes.axvline(bound, ls="--", color="purple")
            axes.set_title(f"{name}, {'symmetric' if symmetric else 'affine'}")
    figure.savefig(path)


def per_tensor_and_per_channel(inputs: list[Tensor]) -> None:
    """MovingAveragePerChannelMinMaxObserver(ch_axis=0): the option ``axis``."""
    scales, _ = observed(MovingAverageMinMaxCalibrator(**UINT8, axis=0), inputs)
    print(f"  three channels, scales {[round(scale, 5) for scale in scales.flatten().tolist()]}")
    weight = torch.randn(8, 64) * torch.logspace(-2, 0, 8)[:, None]  # as folding batch norm makes them
    for axis in (None, 0):
        quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(axis=axis))
        print(f"  weight, axis {axis}: narrowest channel {sqnr_db(weight[0], quantizer(weight)[0]):5.1f} dB")


def qconfig() -> fxq.Recipe:
    """get_default_qconfig(backend): a recipe, named after the runtime. QConfig(activation, weight): QConfig."""
    chosen = fxq.QConfig(
        activation=fxq.QuantDescriptor(**UINT8, symmetric=False, calibrator="moving_average"),
        weight=fxq.QuantDescriptor(axis=0),
    )
    return fxq.recipe("onnxruntime").replace(default=chosen)


class Tagger(nn.Module):
    """The notebook's layers, LSTM and linear, in an order that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.tags = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten scores for each time step."""
        outputs, _ = self.lstm(x)
        return self.tags(outputs)


def dynamic() -> None:
    """quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8): a recipe that needs no data, and rules."""
    model, x = Tagger().eval(), torch.randn(1, 32, 64)
    converted = fxq.quantize(model, recipe="dynamic", example_inputs=x)
    print(f"  LSTM and linear layer in int8: {sqnr_db(model(x), converted(x)):.1f} dB")
    only = fxq.recipe("dynamic").with_rules(("*", None), (nn.LSTM, fxq.QConfig()))
    converted = fxq.quantize(model, recipe=only, example_inputs=x)
    print(f"  the LSTM alone: {sqnr_db(model(x), converted(x)):.1f} dB")


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def static(recipe: fxq.Recipe, batches: list[Tensor]) -> None:
    """fuse_modules, QuantStub, prepare, calibrate, convert: one call; the passes fuse, place and explain."""
    model = network().eval()
    converted = fxq.quantize(model, batches, recipe)
    quality = sqnr_db(model(batches[0]), converted(batches[0]))
    print(f"  {quality:.1f} dB, stored weight {converted.get_buffer('0.weight').dtype}")
    with tempfile.TemporaryDirectory() as folder:  # integer-only inference is the runtime's: QLinearConv, QGemm
        report = fxq.export_onnx(converted, Path(folder) / "model.onnx")
    print(f"  {report.quantize_nodes} QuantizeLinear in the file, {report.size_bytes} bytes")


def training(recipe: fxq.Recipe, batches: list[Tensor]) -> None:
    """prepare_qat: prepare(qat=True), after calibration trained as any module; its moving averages go on meanwhile."""
    model = network().eval()
    prepared = fxq.prepare(model, batches[0], recipe, qat=True)
    fxq.calibrate(prepared, batches)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1.0)
    schedule = fxq.qat_schedule(optimizer, total_steps=5 * len(batches))  # from 1 % of the rate, by a cosine
    losses = []
    prepared.train()
    for x in batches * 5:
        loss = (prepared(x) - x.mean((1, 2, 3))[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    fxq.convert(prepared.eval())
    print(f"  loss {losses[0]:.4f} -> {losses[-1]:.4f}")


def sensitivity(batches: list[Tensor]) -> None:
    """One layer quantized at a time: ``fxq.sensitivity``. The numeric suite: ``fxq.compare``. By hand: as below."""
    model = network().eval()
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    prepared = calibrated(model, fxq.recipe("onnxruntime"), batches)
    x, inside, inside_quantized = batches[0], {}, {}
    with outputs_of(model, paths, inside), outputs_of(prepared, paths, inside_quantized):
        expected, _ = model(x), prepared(x)
    print(fxq.sensitivity(model, batches, recipe="onnxruntime", progress=False).table())
    compared = fxq.compare(model, prepared, batches, progress=False)
    print(compared.table())
    if HAS_MATPLOTLIB:
        compared.plot("layers.png")
    print("  layer   only this one   its weight   its output")
    for path in paths:
        only = fxq.recipe("onnxruntime").with_rules(("*", None), (path, fxq.QConfig()))
        alone = sqnr_db(expected, calibrated(model, only, batches)(x))
        layer = prepared.get_submodule(path)
        weight = sqnr_db(layer.weight, layer.quantized_weight())
        output = sqnr_db(inside[path], inside_quantized[path])
        print(f"  {path:5} {alone:12.1f} dB {weight:9.1f} dB {output:9.1f} dB")


def calibrated(model: nn.Module, recipe: fxq.Recipe, batches: list[Tensor]) -> nn.Module:
    prepared = fxq.prepare(model, batches[0], recipe)
    fxq.calibrate(prepared, batches)
    return prepared


@contextmanager
def outputs_of(model: nn.Module, paths: list[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    def keep(path: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        outputs[path] = output

    hooks = [model.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    yield
    for hook in hooks:
        hook.remove()


def main() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2), torch.randn(3, 2)]
    batches = list(torch.rand(4, 8, 2, 24, 24))
    print("observers")
    observers(inputs)
    print("affine and symmetric")
    affine_and_symmetric(inputs)
    print("per tensor and per channel")
    per_tensor_and_per_channel(inputs)
    recipe = qconfig()
    print("dynamic quantization")
    dynamic()
    print("static quantization")
    static(recipe, batches)
    print("quantization-aware training")
    training(recipe, batches)
    print("sensitivity analysis, signal to quantization noise")
    sensitivity(batches)


if __name__ == "__main__":
    main()
