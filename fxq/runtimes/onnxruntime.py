"""ONNX Runtime on the CPU."""

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fxq.runtimes.executed import OPEN, ExecutedOp, OpTensor, OpTime
from fxq.runtimes.inputs import FileInput, Inputs, arrays_by_name
from fxq.runtimes.runtime import FilePath, RunOnce, Runtime, check_threads

if TYPE_CHECKING:
    import onnx

# Its exceptions have no common base but Exception.
_ERRORS = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)
# How its profile marks the time of a kernel, among those of loading and of a whole run.
_KERNEL = "_kernel_time"
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """ONNX Runtime's kernels for the CPU.

    Args:
        threads: for one operator; None leaves it to ONNX Runtime, one for each core. They sleep between runs: threads
            that spin take the cores from whatever runs next.
        optimize: with its fusions; False runs the operators as the file has them.
        without: optimizers to leave out, by ONNX Runtime's names, such as "MatMulScaleFusion".
    """

    name: ClassVar[str] = "onnxruntime"
    module: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"

    threads: int | None = None
    optimize: bool = True
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def bind(self, path: FilePath, inputs: Inputs) -> RunOnce:
        """See the base."""
        path = self._existing(path)
        return self._bound(path, self._session(path), inputs)

    def load(self, path: FilePath) -> Callable[[Inputs], list[np.ndarray]]:
        """Load the file once and return a function that runs it, as ``run`` does."""
        path = self._existing(path)
        session = self._session(path)
        return lambda inputs: self._bound(path, session, inputs)()

    def _bound(self, path: Path, session: Any, inputs: Inputs) -> RunOnce:
        arrays = arrays_by_name([_file_input(value) for value in session.get_inputs()], inputs)
        errors = self._errors()

        def run_once() -> list[np.ndarray]:
            with self._own_words(path, errors):
                return list(session.run(None, arrays))

        return run_once

    def executed_ops(self, path: FilePath) -> tuple[ExecutedOp, ...]:
        """Return the nodes of the optimized graph; ONNX Runtime does not tell what it fused into them."""
        import onnx  # noqa: PLC0415 - which fxq needs to read and write files alone

        path = self._existing(path)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            self._session(path, optimized)
            return _ops(onnx.load(optimized, load_external_data=False).graph)

    def op_times(self, path: FilePath, inputs: Inputs, rounds: int = 20, warm_up: int = 3) -> tuple[OpTime, ...]:
        """See the base."""
        path = self._existing(path)
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(path, profile_to=Path(folder))
            arrays = arrays_by_name([_file_input(value) for value in session.get_inputs()], inputs)
            with self._own_words(path, self._errors()):
                for _ in range(warm_up + rounds):
                    session.run(None, arrays)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times_us: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event["name"].endswith(_KERNEL):
                # Nodes that ONNX Runtime adds may have no name, or that of another.
                key = event["name"].removesuffix(_KERNEL), event["args"]["node_index"]
                times_us.setdefault(key, []).append(event["dur"])
        return tuple(OpTime(name, statistics.median(times[warm_up:]) / 1e3) for (name, _), times in times_us.items())

    def _session(self, path: Path, optimized_to: Path | None = None, profile_to: Path | None = None) -> Any:
        onnxruntime = self._import()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.intra_op_num_threads = self.threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to / "profile")
        if optimized_to is not None:
            options.optimized_model_filepath = str(optimized_to)
            # Weights beside the file: it may be larger than protobuf's 2 GB, and nobody reads them.
            entry = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(entry, f"{optimized_to.name}.data")
        with self._own_words(path, self._errors()):
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(self.without)
            )

    def _errors(self) -> tuple[type[Exception], ...]:
        state = self._import().capi.onnxruntime_pybind11_state
        return tuple(getattr(state, name) for name in _ERRORS)


def _file_input(value: Any) -> FileInput:
    word = value.type.removeprefix("tensor(").removesuffix(")")
    return FileInput(value.name, _NUMPY_NAMES.get(word, word), tuple(value.shape))


def _ops(graph: "onnx.GraphProto") -> tuple[ExecutedOp, ...]:
    stored = {item.name: _dtype(item.data_type) for item in graph.initializer}
    known = {value.name: _activation(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    ops = []
    for node in graph.node:
        inputs = tuple(known[name] for name in node.input if name and name not in stored)
        written = _dtype_written(node, inputs, stored)
        for name in filter(None, node.output):
            known.setdefault(name, OpTensor(name, written, None))
        outputs = tuple(known[name] for name in node.output if name)
        ops.append(ExecutedOp(node.name, node.op_type, inputs, outputs))
    return tuple(ops)


def _dtype_written(node: "onnx.NodeProto", inputs: tuple[OpTensor, ...], stored: Mapping[str, str]) -> str:
    """Return the dtype of an output whose type the file does not hold.

    ONNX Runtime stores none behind a change of layout. What it moves there (convolutions, pooling, adds, activations,
    transposes) writes the type that it reads, and a quantizer that of its zero point or scale. QGemm, which has the
    third zero point for what it writes, gives floats without it.
    """
    if node.op_type == "QGemm":
        return stored.get(node.input[8], "") if len(node.input) > 8 and node.input[8] else "float32"
    if node.op_type == "QuantizeLinear" and len(node.input) > 2:
        return stored.get(node.input[2], "")
    if node.op_type == "DequantizeLinear":
        return stored.get(node.input[1], "")
    return inputs[0].dtype if inputs else ""


def _activation(value: "onnx.ValueInfoProto") -> OpTensor:
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_value if size.HasField("dim_value") else OPEN for size in tensor.shape.dim)
    return OpTensor(value.name, _dtype(tensor.elem_type), sizes if tensor.HasField("shape") else None)


def _dtype(number: int) -> str:
    import onnx  # noqa: PLC0415 - see executed_ops

    word = str(onnx.TensorProto.DataType.Name(number)).lower()
    return _NUMPY_NAMES.get(word, word)
