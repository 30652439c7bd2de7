"""Compile an ONNX file with TensorRT for RTX, ahead of time and without a GPU, and read the plan that comes out.

With detailed profiling the builder logs its final list of kernels, each with the shape and dtype of its inputs and
outputs. Kinds: ``correlation`` is a convolution, ``gemm`` a matrix product, ``kgen`` a fused pointwise kernel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import tensorrt_rtx_bindings as trt

Shape = tuple[int, ...]
WEIGHTED = ("correlation", "gemm")
_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "UInt8": 1, "FP8": 1, "Bool": 1, "Int32": 4, "Int64": 8}
_KERNEL = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
_SECTION = re.compile(r"(Inputs|Outputs): \[((?: ?\{[^{}]*\},?)*)\]")
_TENSOR = re.compile(r"Name: (?P<name>\S+), Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")


@dataclass(frozen=True)
class PlanTensor:
    """An activation as a kernel reads or writes it."""

    name: str
    shape: Shape
    dtype: str

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class Kernel:
    """One kernel of the plan, without its constants."""

    name: str
    kind: str
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]


@dataclass(frozen=True)
class Plan:
    """The kernels in order of execution."""

    kernels: tuple[Kernel, ...]

    @property
    def weighted(self) -> tuple[Kernel, ...]:
        return tuple(kernel for kernel in self.kernels if kernel.kind in WEIGHTED)

    @property
    def weighted_input_dtypes(self) -> set[str]:
        return {tensor.dtype for kernel in self.weighted for tensor in kernel.inputs}

    @property
    def traffic_mb(self) -> float:
        """Megabytes (10^6) of activations that kernels read and write."""
        return sum(tensor.size_bytes for kernel in self.kernels for tensor in kernel.inputs + kernel.outputs) / 1e6


class RefusedError(Exception):
    """TensorRT does not take the file; the text is its own."""


def compile_plan(path: Path, profile: Mapping[str, tuple[Shape, Shape, Shape]] | None = None) -> Plan:
    """Return what the builder makes of ``path``.

    Args:
        path: the ONNX file.
        profile: of each input with a dynamic shape its smallest, usual and largest shape.

    Raises:
        RefusedError: the parser or the builder refuses the file.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed())
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise RefusedError("; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    if profile is not None:
        optimization = builder.create_optimization_profile()
        for name, shapes in profile.items():
            optimization.set_shape(name, *shapes)
        config.add_optimization_profile(optimization)
    if builder.build_serialized_network(network, config) is None:
        raise RefusedError("\n".join(log.lines[-3:]))
    return parse_plan("\n".join(log.lines))


def parse_plan(log: str) -> Plan:
    """Return the plan that the builder's log describes."""
    kernels = []
    for match in _KERNEL.finditer(log):
        sections = dict(_SECTION.findall(match["rest"]))
        kernels.append(
            Kernel(match["name"], match["kind"], _tensors(sections.get("Inputs")), _tensors(sections.get("Outputs")))
        )
    return Plan(tuple(kernels))


def _tensors(section: str | None) -> tuple[PlanTensor, ...]:
    return tuple(
        PlanTensor(found["name"], tuple(int(size) for size in found["shape"].split(",") if size), found["dtype"])
        for found in _TENSOR.finditer(section or "")
    )


def _strongly_typed() -> int:
    # From TensorRT 11 on every network is; before, an int8 file without the flag may be run in float.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class _Log(trt.ILogger):
    """Keeps what the builder says."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.lines.append(message)
