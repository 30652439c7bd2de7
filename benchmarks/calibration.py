"""What calibration costs as a multiple of the plain forward, and how long fitting takes: MobileNetV2, 64 images.

Peers run in the same rounds: torch.ao's observers, and ModelOpt where it is installed. ModelOpt's max calibration
also looks at the weights; both peers observe the same batches.
"""

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable

import torch
from rich.console import RenderableType
from torch import Tensor, nn

import fxq
from benchmarks.figures import Figure, table_of
from benchmarks.models import network, noise_images
from fxq.runtimes import time_in_turn

IMAGES, BATCH, ROUNDS = 64, 16, 5
INSTALL_MODELOPT = (
    "ModelOpt is not installed and was left out: uv run --with nvidia-modelopt --with requests "
    "python -m benchmarks calibration"
)


def run() -> list[RenderableType]:
    """Measure, and return the tables to print."""
    model, batches = network("mobilenet_v2"), list(torch.split(noise_images(IMAGES), BATCH))
    prepared = {
        name: fxq.prepare(model, batches[0][:1], fxq.recipe("tensorrt").replace(calibrator=name))
        for name in ("max", "histogram")
    }
    switched_off = fxq.prepare(model, batches[0][:1])
    for module in switched_off.modules():
        if isinstance(module, fxq.TensorQuantizer):
            module.disable()
    calls: dict[str, Callable[[], object]] = {
        "plain forward": lambda: _forward(model, batches),
        "fxq: prepared, quantizers off": lambda: _forward(switched_off, batches),
        "fxq: max": lambda: fxq.calibrate(prepared["max"], batches, progress=False),
        "fxq: histogram and percentile fit": lambda: fxq.calibrate(prepared["histogram"], batches, progress=False),
        "torch.ao: min and max": _torch_ao(model, batches, histogram=False),
        "torch.ao: histogram": _torch_ao(model, batches, histogram=True),
    }
    has_modelopt = importlib.util.find_spec("modelopt") is not None
    if has_modelopt:
        calls |= {f"ModelOpt: {kind}": _modelopt(model, batches, kind) for kind in ("max", "histogram")}
    times = time_in_turn(calls, ROUNDS)
    limits = {"fxq: max": (1.15, None), "fxq: histogram and percentile fit": (2.0, None)}
    figures = []
    for name in calls:
        limit, goal = limits.get(name, (None, None))
        ratio, seconds = times[name].ratio(to=times["plain forward"]), times[name].median_ms / 1e3
        figures.append(Figure(name, ratio, "x", limit, goal, note=f"{seconds:.2f} s"))
    title = f"calibration, MobileNetV2, {IMAGES} images of 224x224, multiples of the plain forward"
    tables: list[RenderableType] = [table_of(title, figures), _fits(prepared["histogram"])]
    return tables if has_modelopt else [*tables, INSTALL_MODELOPT]


def _forward(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


def _fits(prepared: torch.fx.GraphModule) -> RenderableType:
    """Return how long a fit of all ranges of the calibrated model takes, without the data."""
    limits = {"entropy": (3.0, None)}
    figures = []
    for method in ("max", "percentile", "mse", "entropy"):
        start = time.perf_counter()
        fxq.fit_ranges(prepared, method)
        figures.append(Figure(method, time.perf_counter() - start, "s", *limits.get(method, (None, None))))
    return table_of("fitting all activation ranges of MobileNetV2 again", figures)


def _torch_ao(model: nn.Module, batches: list[Tensor], histogram: bool) -> Callable[[], object]:
    # Here and nowhere else: fxq itself never imports torch.ao, which is being deleted.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import (  # noqa: PLC0415
            HistogramObserver,
            MinMaxObserver,
            QConfig,
            QConfigMapping,
            default_weight_observer,
        )
        from torch.ao.quantization.quantize_fx import prepare_fx  # noqa: PLC0415

        activation = HistogramObserver if histogram else MinMaxObserver
        qconfig = QConfig(activation=activation, weight=default_weight_observer)  # type: ignore[no-untyped-call]
        mapping = QConfigMapping().set_global(qconfig)
        prepared = prepare_fx(copy.deepcopy(model), mapping, (batches[0][:1],))

    def observe() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _forward(prepared, batches)

    return observe


def _modelopt(model: nn.Module, batches: list[Tensor], kind: str) -> Callable[[], object]:
    import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]  # noqa: PLC0415 - heavy and optional

    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    prepared = mtq.quantize(copy.deepcopy(model), config, lambda found: _forward(found, batches[:1]))
    quantizers = [
        module
        for name, module in prepared.named_modules()
        if name.endswith("input_quantizer") and isinstance(module, mtq.nn.TensorQuantizer)
    ]

    def observe() -> None:
        for quantizer in quantizers:
            quantizer.disable_quant()
            quantizer.enable_calib()
        _forward(prepared, batches)
        for quantizer in quantizers:
            quantizer.disable_calib()
            quantizer.enable_quant()

    if kind == "histogram":
        for quantizer in quantizers:
            quantizer._calibrator = mtq.calib.HistogramCalibrator(num_bits=8, axis=None)
    return observe
