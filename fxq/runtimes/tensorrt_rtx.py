"""TensorRT for RTX: compiles a file ahead of time and without a GPU; what comes out is read from the builder's log.

With detailed profiling the builder logs its final list of kernels, each with the shape and dtype of its inputs and
outputs and the nodes of the file that it computes. Kinds: ``correlation`` is a convolution, ``deconv`` a transposed
one, ``gemm`` a matrix product, ``runtime_fusion`` one in float with what follows it, ``kgen`` pointwise work.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from fxq.errors import InputError, RuntimeUnavailableError
from fxq.runtimes.executed import OPEN, ExecutedOp, OpTensor
from fxq.runtimes.inputs import Inputs
from fxq.runtimes.runtime import FilePath, Runtime

Shape = tuple[int, ...]
# A runtime fusion is a product in float, with what follows it.
WEIGHTED = ("correlation", "deconv", "gemm", "runtime_fusion")
_DTYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "UInt8": "uint8",
    "FP8": "float8e4m3fn",
    "Bool": "bool",
    "Int32": "int32",
    "Int64": "int64",
}
_KERNEL = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
# Names come from the file, and may hold blanks, brackets and braces.
_SECTION = re.compile(r"(Inputs|Outputs): \[( ?\{.*?\})?\](?=, |$)")
_TENSOR = re.compile(r"Name: (?P<name>.+?), Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f|\[ONNX Layer: |$)")


@dataclass(frozen=True)
class TensorRtRtx(Runtime):
    """TensorRT for RTX's ahead-of-time compiler, for GPUs of the Ada generation (SM89).

    Args:
        profile: of each input with an open dimension its smallest, usual and largest shape; equal ones fix it.
    """

    name: ClassVar[str] = "tensorrt_rtx"
    module: ClassVar[str] = "tensorrt_rtx_bindings"
    package: ClassVar[str] = "tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs"
    runs_here: ClassVar[bool] = False

    profile: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)

    def bind(self, path: FilePath, inputs: Inputs) -> NoReturn:
        """Refuse: there is nothing to run a plan on.

        Raises:
            RuntimeUnavailableError: always.
        """
        raise RuntimeUnavailableError(
            f"{self.name} runs and times files on an NVIDIA RTX GPU, which fxq does not drive: executed_ops compiles "
            f"without one; run {Path(path).name} in 'onnxruntime', or on the GPU with TensorRT's own tools"
        )

    def executed_ops(self, path: FilePath) -> tuple[ExecutedOp, ...]:
        """Return the kernels of the plan.

        Raises:
            InputError: an input has open dimensions and no profile, or its profile does not fit.
        """
        path = self._existing(path)
        trt, lines = self._import(), list[tuple[int, str]]()
        log = _logger(trt, lines)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            raise self._refusal(
                path, _without_gpu(_in_words(parser.get_error(index)) for index in range(parser.num_errors))
            )
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        self._check_profile({value.name: tuple(value.shape) for value in _inputs(network)})
        open_profile = {name: shapes for name, shapes in self.profile.items() if len(set(shapes)) > 1}
        for value in _inputs(network):
            if value.name in self.profile and value.name not in open_profile:
                value.shape = self.profile[value.name][0]  # all sizes are known then, those of activations too
        if open_profile:
            optimization = builder.create_optimization_profile()
            for name, shapes in open_profile.items():
                optimization.set_shape(name, *shapes)
            config.add_optimization_profile(optimization)
        if builder.build_serialized_network(network, config) is None:
            worst = min(severity for severity, _ in lines)
            raise self._refusal(path, [message for severity, message in lines if severity == worst][-1])
        return read_kernels("\n".join(message for _, message in lines))

    def _check_profile(self, declared: Mapping[str, Shape]) -> None:
        for name, shape in declared.items():
            if OPEN in shape and name not in self.profile:
                raise InputError(
                    f"input {name!r} has open dimensions, {shape}: tell {self.name} its smallest, usual and largest "
                    f"shape with the option profile={{{name!r}: (smallest, usual, largest)}}, or export the file with "
                    "dynamic_batch=False"
                )
        for name, shapes in self.profile.items():
            if name not in declared:
                raise InputError(f"profile: the file has no input {name!r}; its inputs: {', '.join(declared)}")
            if len(shapes) != 3 or not _fits(declared[name], *shapes):
                raise InputError(
                    f"profile: {shapes} are not a smallest, usual and largest shape of input {name!r}, {declared[name]}"
                )


def _in_words(error: Any) -> str:
    """Return what the parser says of a node, with its name: the description of one that it does not know is "false"."""
    name, words = str(error.node_name()), str(error.desc())
    if not name or words.startswith("Invalid Node - "):
        return words
    return f"In node {error.node()} with name: {name} and operator: {error.node_operator()}: {words}"


def _without_gpu(words: Iterable[str]) -> str:
    """Return the parser's words without those about the GPU, which compiling ahead of time needs none of."""
    lines = [line for text in words for line in text.splitlines() if "catchCudaError" not in line]
    return "; ".join(line.strip() for line in lines)


def weighted_ops(ops: Iterable[ExecutedOp]) -> tuple[ExecutedOp, ...]:
    """Return the kernels that multiply: convolutions, transposed ones, and matrix products, fused or not."""
    return tuple(op for op in ops if op.kind in WEIGHTED)


def read_kernels(log: str) -> tuple[ExecutedOp, ...]:
    """Return the kernels that the builder's log describes."""
    kernels = []
    for match in _KERNEL.finditer(log):
        sections = dict(_SECTION.findall(match["rest"]))
        inputs, outputs = _tensors(sections.get("Inputs", "")), _tensors(sections.get("Outputs", ""))
        fused = tuple(_NODE.findall(match["rest"]))
        kernels.append(ExecutedOp(match["name"], match["kind"], inputs, outputs, fused))
    return tuple(kernels)


def _tensors(section: str) -> tuple[OpTensor, ...]:
    return tuple(
        OpTensor(
            found["name"],
            _DTYPES.get(found["dtype"], ""),
            tuple(int(size) for size in found["shape"].split(",") if size),
        )
        for found in _TENSOR.finditer(section)
    )


def _fits(declared: Shape, smallest: Shape, usual: Shape, largest: Shape) -> bool:
    if {len(smallest), len(usual), len(largest)} != {len(declared)}:
        return False
    sizes = zip(declared, smallest, usual, largest, strict=True)
    return all(low <= middle <= high and (size == OPEN or low == size == high) for size, low, middle, high in sizes)


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _strongly_typed(trt: Any) -> int:
    # From TensorRT 11 on every network is; before, an int8 file without the flag may be run in float.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any, lines: list[tuple[int, str]]) -> Any:
    """Return a logger that keeps what the builder says, with its severity: 0 is the worst."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """Here, because its base is known only once TensorRT is imported."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.append((int(severity), message))

    return Log()
