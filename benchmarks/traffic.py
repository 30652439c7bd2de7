"""What TensorRT for RTX makes of quantized files, compiled without a GPU: integers, kernels, bytes that travel.

One image of 224x224, random weights; the float side in float32 and in float16, inputs and outputs in float32. An
operation computes in int8 if its kernel reads nothing else. Traffic: the activations that kernels read and write.
"""

import argparse
import math
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from torch import Tensor, nn

import fxq
from benchmarks.accuracy_peers import failure, silence
from benchmarks.accuracy_rows import markdown
from benchmarks.float_files import write_float
from benchmarks.latency import MODELS
from benchmarks.models import check_names, network, noise_images
from benchmarks.telling import say, write_parts
from fxq.runtimes import ExecutedOp, get_runtime, traffic_mb
from fxq.runtimes.tensorrt_rtx import weighted_ops

FLOAT, FXQ, MODELOPT = "float", "fxq", "modelopt"
PEERS = (MODELOPT,)
SIDES: Mapping[str, torch.dtype] = MappingProxyType({"float32": torch.float32, "float16": torch.float16})
CALIBRATION_IMAGES = 2  # placements do not depend on them
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Of a model, its images and the float side, to the path.
Writer = Callable[[nn.Module, Tensor, torch.dtype, Path], None]


@dataclass(frozen=True)
class Plan:
    """What the compiler made of one file.

    Args:
        in_int8, weighted: convolutions and matrix products of the file: those whose kernel reads int8 alone, and all.
        kernels: without those that only wait for others.
        traffic_mb: see the module.
        note: why there is no plan; the rest is 0 then.
    """

    in_int8: int = 0
    weighted: int = 0
    kernels: int = 0
    traffic_mb: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Row:
    """The plans of a model with one float side, by method."""

    model: str
    side: str
    plans: Mapping[str, Plan]

    def share(self, method: str) -> float:
        """Return the traffic of fxq's file as a part of another's; nan where there is none."""
        return self.plans[FXQ].traffic_mb / self.plans[method].traffic_mb if method in self.plans else math.nan


def run(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Compile one model's files after another's, and yield the table, and what fxq's files are held to."""
    options = _options(arguments)
    check_names(options.models)
    methods = (FLOAT, FXQ, *options.peers)
    heading = f"TensorRT for RTX {get_runtime('tensorrt_rtx').version}. " + " ".join((__doc__ or "").split("\n\n")[1:])
    heading = " ".join(heading.split())
    rows: list[Row] = []
    write_parts(options.out, [heading])  # a path that cannot be written fails before anything is compiled
    for model in options.models:
        say(model)
        plans = {method: _in_child(model, method, options.peers_path) for method in methods}
        rows += [Row(model, side, {method: found[side] for method, found in plans.items()}) for side in SIDES]
        write_parts(options.out, [heading, table(rows, methods), *verdicts(rows)])
        for line in table(rows[-len(SIDES) :], methods).splitlines()[2:]:
            say(line)
    yield from (heading, "", table(rows, methods), "", *verdicts(rows))


def plans_of(model: nn.Module, method: str) -> dict[str, Plan]:
    """Return what the compiler makes of a method's files of a model for images of 224x224, by float side."""
    images, found = noise_images(CALIBRATION_IMAGES), {}
    with tempfile.TemporaryDirectory() as folder:
        for side, dtype in SIDES.items():
            path = Path(folder) / f"{side}.onnx"
            try:
                WRITERS[method](model, images, dtype, path)
                found[side] = plan_of(path)
            except ModuleNotFoundError as error:
                found[side] = Plan(note=f"not installed: {error.name}")
            except Exception as error:  # what a peer raises is its own; the other files go on
                found[side] = Plan(note=failure(error))
    return found


def plan_of(path: Path) -> Plan:
    """Return what the compiler makes of a file; raises as ``executed_ops``."""
    ops = get_runtime("tensorrt_rtx").executed_ops(path)
    nodes = [node for node in onnx.load(path, load_external_data=False).graph.node if node.op_type in _WEIGHTED]
    in_int8 = sum(_is_in_int8(node.name, ops) for node in nodes)
    return Plan(in_int8, len(nodes), sum(bool(op.outputs) for op in ops), traffic_mb(ops))


def _is_in_int8(name: str, ops: Sequence[ExecutedOp]) -> bool:
    kernels = [op for op in ops if name in op.fused and op.inputs]
    # The kernel that scales what a product writes has its name too; attention may be one kernel as a whole.
    return any(set(op.input_dtypes) == {"int8"} for op in weighted_ops(kernels) or kernels)


def table(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Return a line for each model and float side."""
    peers = [method for method in methods if method != FXQ]
    lines = [
        [row.model, row.side, *(_cell(row.plans[method]) for method in methods), *(_text(row.share(p)) for p in peers)]
        for row in rows
    ]
    return markdown(["model", "float side", *methods, *(f"fxq / {peer}" for peer in peers)], lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return what fxq's files are held to and where it is missed, and why files have no plan."""
    plans = [(f"{row.model} {row.side}", row.plans[FXQ]) for row in rows]
    in_float = [
        f"{name} {plan.weighted - plan.in_int8 or 'has no plan'}"
        for name, plan in plans
        if plan.note or plan.in_int8 < plan.weighted
    ]
    found = [f"Convolutions and matrix products all in int8: {_missed(in_float)}"]
    for method in dict.fromkeys(method for row in rows for method in row.plans if method != FXQ):
        shares = {f"{row.model} {row.side}": row.share(method) for row in rows if not math.isnan(row.share(method))}
        more = [f"{name} {share:.2f}" for name, share in shares.items() if share > 1.005]
        if shares:
            mean = math.exp(sum(map(math.log, shares.values())) / len(shares))
            found.append(f"No more traffic than {method}: {_missed(more)}; geometric mean of {len(shares)}: {mean:.2f}")
    notes = [(f"{row.model} {row.side}, {method}", plan.note) for row in rows for method, plan in row.plans.items()]
    return found + [f"{name}: {note}" for name, note in notes if note]


def _missed(names: Sequence[str]) -> str:
    return f"missed: {', '.join(names)}" if names else "holds"


def _cell(plan: Plan) -> str:
    if plan.note:
        return "none"
    return f"{plan.traffic_mb:.1f} MB, {plan.kernels} kernels, {plan.in_int8} of {plan.weighted} int8"


def _text(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.2f}"


def _in_child(model: str, method: str, packages: Path | None) -> dict[str, Plan]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_plans_here, model, method, packages).result()
        except BrokenProcessPool:
            return dict.fromkeys(SIDES, Plan(note="failed: its process died"))


def _plans_here(model: str, method: str, packages: Path | None) -> dict[str, Plan]:
    if packages is not None:
        sys.path.append(str(packages.resolve()))  # behind what is installed: no second numpy
    silence()
    warnings.simplefilter("ignore")
    return plans_of(network(model), method)


class _InFloat16(nn.Module):
    """A model in float16 with inputs and outputs in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x.half()).float()
        return outputs


def _float(model: nn.Module, images: Tensor, dtype: torch.dtype, path: Path) -> None:
    write_float(_InFloat16(model) if dtype is torch.float16 else model, images[:1], path)


def _fxq(model: nn.Module, images: Tensor, dtype: torch.dtype, path: Path) -> None:
    converted = fxq.quantize(model, [images], "tensorrt", images[:1], accuracy="plain", progress=False)
    fxq.export_onnx(converted, path, dynamic_batch=False, float_dtype=dtype, keep_io_types=True)


def _modelopt(model: nn.Module, images: Tensor, dtype: torch.dtype, path: Path) -> None:
    """As ModelOpt's command does by default, but for the calibration method, which its placement does not depend on."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]  # noqa: PLC0415 - optional

    in_float = path.with_name("float.onnx")
    write_float(model, images[:1], in_float)
    quantize(
        str(in_float),
        calibration_data=images.numpy(),
        calibration_method="max",
        calibration_eps=["cpu"],
        output_path=str(path),
        high_precision_dtype="fp16" if dtype is torch.float16 else "fp32",
    )


WRITERS: Mapping[str, Writer] = MappingProxyType({FLOAT: _float, FXQ: _fxq, MODELOPT: _modelopt})


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks traffic", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", default=MODELS, help="of torchvision or timm")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--peers-path", type=Path, metavar="FOLDER", help="of peers' packages that are not installed")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="written anew after each model")
    return parser.parse_args(arguments)
