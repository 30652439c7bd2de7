"""OpenVINO on the CPU.

What it executes: ``CompiledModel.get_runtime_model()``, whose nodes carry the layer type, the precision of each output
and the names of the layers that were fused into them.
"""

import functools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fxq.runtimes.executed import OPEN, ExecutedOp, OpTensor, OpTime
from fxq.runtimes.inputs import FileInput, Inputs, arrays_by_name
from fxq.runtimes.runtime import FilePath, RunOnce, Runtime, check_threads

_DTYPES = {
    "boolean": "bool",
    "i4": "int4",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u4": "uint4",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "f8e4m3": "float8e4m3fn",
}


@dataclass(frozen=True)
class OpenVino(Runtime):
    """OpenVINO's kernels for the CPU; where a layer stays in float, it chooses the precision (bfloat16 on some CPUs).

    Args:
        threads: for one run; None leaves it to OpenVINO.
    """

    name: ClassVar[str] = "openvino"
    module: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"

    threads: int | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def bind(self, path: FilePath, inputs: Inputs) -> RunOnce:
        """See the base."""
        path = self._existing(path)
        compiled = self._compile(path)
        arrays = arrays_by_name([_file_input(value) for value in compiled.inputs], inputs)
        request = compiled.create_infer_request()

        def run_once() -> list[np.ndarray]:
            with self._own_words(path, (RuntimeError,)):
                found = request.infer(arrays)
                # Copies: the next run writes into the same memory.
                return [np.array(found[output]) for output in compiled.outputs]

        return run_once

    def executed_ops(self, path: FilePath) -> tuple[ExecutedOp, ...]:
        """Return the layers of the runtime model."""
        ops, stored = [], set[str]()
        for node in self._compile(self._existing(path)).get_runtime_model().get_ordered_ops():
            kind, sources = _text(node, "layerType"), [value.get_source_output() for value in node.inputs()]
            activations = [output for output in sources if output.get_node().get_friendly_name() not in stored]
            if kind in ("Input", "Output"):
                continue
            if activations:
                ops.append(_op(node, kind, activations))
            else:  # a constant, or computed from constants once, when the file is loaded
                stored.add(node.get_friendly_name())
        return tuple(ops)

    def op_times(self, path: FilePath, inputs: Inputs, rounds: int = 20, warm_up: int = 3) -> tuple[OpTime, ...]:
        """See the base."""
        path = self._existing(path)
        compiled = self._compile(path, is_profiled=True)
        arrays = arrays_by_name([_file_input(value) for value in compiled.inputs], inputs)
        request = compiled.create_infer_request()
        times_ms: dict[str, list[float]] = {}
        for index in range(warm_up + rounds):
            with self._own_words(path, (RuntimeError,)):
                request.infer(arrays)
            for found in request.profiling_info if index >= warm_up else ():
                times_ms.setdefault(found.node_name, []).append(1e3 * found.real_time.total_seconds())
        return tuple(OpTime(name, statistics.median(times)) for name, times in times_ms.items() if any(times))

    def _compile(self, path: Path, is_profiled: bool = False) -> Any:
        core = _core(self._import())
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": is_profiled}
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        with self._own_words(path, (RuntimeError,)):
            return core.compile_model(core.read_model(str(path)), "CPU", options)


@functools.cache
def _core(openvino: Any) -> Any:
    """Return the one core of this process, which nothing destroys.

    The plugin for CPUs gives the thread that first compiles a stack for signal handlers. Destroyed by another thread,
    as a garbage collection there does, it takes the memory of that stack along, and the next signal ends the process.
    """
    return openvino.Core()


def _file_input(value: Any) -> FileInput:
    sizes = tuple(size.get_length() if size.is_static else None for size in value.partial_shape)
    return FileInput(value.any_name, str(value.element_type.to_dtype()), sizes)


def _op(node: Any, kind: str, activations: list[Any]) -> ExecutedOp:
    fused = tuple(filter(None, _text(node, "originalLayersNames").split(",")))
    inputs, outputs = (tuple(_tensor(output) for output in side) for side in (activations, node.outputs()))
    return ExecutedOp(node.get_friendly_name(), kind, inputs, outputs, fused)


def _tensor(output: Any) -> OpTensor:
    node = output.get_node()
    listed = _text(node, "outputPrecisions").split(",")  # once, where all outputs have the same
    precision = listed[output.get_index() if len(listed) > 1 else 0]
    sizes = tuple(size.get_length() if size.is_static else OPEN for size in output.get_partial_shape())
    return OpTensor(node.get_friendly_name(), _DTYPES.get(precision, ""), sizes)


def _text(node: Any, key: str) -> str:
    return str(node.get_rt_info()[key].astype(str))
