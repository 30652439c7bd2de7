"""The files of ``python -m benchmarks latency``: a model in float, by fxq and by peers, kept in a folder.

A file is written whole or not at all, in a process of its own: some peers patch torch when they are imported.
"""

import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

import fxq
from benchmarks.accuracy_peers import failure, silence
from benchmarks.float_files import write_float
from benchmarks.models import network, noise_images

CALIBRATION_IMAGES = 8
FLOAT, FXQ, QUANTIZE_STATIC, NNCF = "float", "fxq", "quantize_static", "nncf"
TUNE_BUDGET_S = 120.0
PEERS = (QUANTIZE_STATIC, NNCF)
# The float file is what the peers read: of a model, its images and the file's own path.
Writer = Callable[[nn.Module, Tensor, Path], None]
_FLOAT_FILE = "float.onnx"
# What each method runs in each runtime, by file name.
NAMES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        **{
            (method, runtime): f"{method}.onnx" for method in (FLOAT, *PEERS) for runtime in ("onnxruntime", "openvino")
        },
        (FXQ, "onnxruntime"): "fxq_onnxruntime.onnx",
        (FXQ, "openvino"): "fxq_openvino.onnx",
        (NNCF, "openvino"): "nncf.xml",
    }
)


def write_files(
    model: str, runtime: str, folder: Path, peers: tuple[str, ...], packages: Path | None, tuned: bool = False
) -> tuple[dict[str, Path], list[str]]:
    """Write the files that are not there yet, and return all by method, and why there is none of a method.

    Args:
        model: its name, see :func:`benchmarks.models.network`.
        runtime: that will run them.
        folder: of all models; each has a folder of its own in it.
        peers: of ``PEERS``, beside float and fxq.
        packages: a folder with the peers' packages; None where they are installed.
        tuned: fxq's file is what ``fxq.tune`` finds in ``TUNE_BUDGET_S`` seconds.
    """
    found: dict[str, Path] = {}
    notes: list[str] = []
    for method in (FLOAT, FXQ, *peers):
        path = folder / model / (f"tuned_{runtime}.onnx" if tuned and method == FXQ else NAMES[method, runtime])
        note = "" if path.is_file() else _in_child(model, path, packages)
        if note:
            notes.append(f"{model}, {method} for {runtime}: {note}")
        else:
            found[method] = path
    return found, notes


def _in_child(model: str, path: Path, packages: Path | None) -> str:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_write_here, model, path, packages).result()
        except BrokenProcessPool:
            return "failed: its process died"


def _write_here(model: str, path: Path, packages: Path | None) -> str:
    if packages is not None:
        sys.path.append(str(packages.resolve()))  # behind what is installed: no second numpy
    silence()
    warnings.simplefilter("ignore")
    return write_file(network(model), path)


def write_file(model: nn.Module, path: Path) -> str:
    """Write the file of this name for a model of images of 224x224; return why not, "" where it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = noise_images(CALIBRATION_IMAGES)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            WRITERS[path.name](model, images, Path(folder) / path.name)
        except ModuleNotFoundError as error:
            return f"not installed: {error.name}"
        except Exception as error:  # what a peer raises is its own; the other files go on
            return failure(error)
        for part in sorted(Path(folder).glob(f"{path.stem}.*")):  # weights first (.bin), then what refers to them
            part.replace(path.parent / part.name)
    return ""


def _fxq(recipe: str) -> Writer:
    def write(model: nn.Module, images: Tensor, path: Path) -> None:
        converted = fxq.quantize(model, [images], recipe, images[:1], progress=False)
        fxq.export_onnx(converted, path, dynamic_batch=False)

    return write


def _tuned(recipe: str) -> Writer:
    def write(model: nn.Module, images: Tensor, path: Path) -> None:
        found = fxq.tune(model, [images], recipe, budget_s=TUNE_BUDGET_S, progress=False)
        fxq.export_onnx(found.converted, path, images[:1], dynamic_batch=False)

    return write


def _float(model: nn.Module, images: Tensor, path: Path) -> None:
    write_float(model, images[:1], path)


def _quantize_static(model: nn.Module, images: Tensor, path: Path) -> None:
    """As onnxruntime recommends for x86 with VNNI: uint8 activations, int8 weights per channel, QDQ."""
    # Here, because it makes every library that logs print its messages.
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    inferred = path.with_name("inferred.onnx")
    _float(model, images, path.with_name(_FLOAT_FILE))
    quant_pre_process(str(path.with_name(_FLOAT_FILE)), str(inferred))
    quantize_static(
        str(inferred),
        str(path),
        _Reader(_input_name(inferred), images.numpy()),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


class _Reader:
    """Hands the images to quantize_static one by one."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name = name
        self._left: Iterator[np.ndarray] = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {self._name: image}


def _nncf_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    import onnx  # noqa: PLC0415

    _float(model, images, path.with_name(_FLOAT_FILE))
    source = onnx.load(path.with_name(_FLOAT_FILE))
    name = source.graph.input[0].name
    onnx.save(_nncf(source, model, images, lambda image: {name: image}), path)


def _nncf_openvino(model: nn.Module, images: Tensor, path: Path) -> None:
    import openvino  # noqa: PLC0415

    _float(model, images, path.with_name(_FLOAT_FILE))
    source = openvino.Core().read_model(str(path.with_name(_FLOAT_FILE)))
    openvino.save_model(_nncf(source, model, images, lambda image: image), str(path), compress_to_fp16=False)


def _nncf(source: Any, model: nn.Module, images: Tensor, as_inputs: Callable[[np.ndarray], object]) -> Any:
    """Quantize as NNCF does by default, in its mode for transformers where the model has LayerNorm."""
    import nncf  # type: ignore[import-not-found]  # noqa: PLC0415 - optional

    is_transformer = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    return nncf.quantize(
        source,
        nncf.Dataset(np.split(images.numpy(), len(images)), as_inputs),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
    )


def _input_name(path: Path) -> str:
    import onnx  # noqa: PLC0415

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "float.onnx": _float,
        "fxq_onnxruntime.onnx": _fxq("onnxruntime"),
        "fxq_openvino.onnx": _fxq("openvino"),
        "tuned_onnxruntime.onnx": _tuned("onnxruntime"),
        "tuned_openvino.onnx": _tuned("openvino"),
        "quantize_static.onnx": _quantize_static,
        "nncf.onnx": _nncf_onnx,
        "nncf.xml": _nncf_openvino,
    }
)
