"""An ONNX file that somebody wrote, read for its rules; what cannot be verified is refused in one message."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from fxq.errors import InputError, OnnxFileError
from fxq.runtimes.runtime import FilePath
from fxq.verification.module_paths import ModulePaths

# From here on ONNX has QuantizeLinear; per channel and in blocks later.
_FIRST_OPSET, _AXIS_OPSET, _BLOCK_OPSET = 10, 13, 21
_QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm",
    "QAttention", "MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
    "DynamicQuantizeLSTM",
)  # fmt: skip


@dataclass(frozen=True)
class OnnxFile:
    """A file, and its model in memory: constants are initializers there, and functions are written out.

    Args:
        path: of the file.
        model: what it holds; shapes are inferred.
    """

    path: Path
    model: ir.Model

    @classmethod
    def read(cls, path: FilePath) -> Self:
        """Read a file that holds a quantized model.

        Raises:
            InputError: ``path`` is no path.
            OnnxFileError: it is not ONNX, not valid, not whole, too old, or not quantized.
        """
        path = as_path(path)
        model = _load(path)
        _check_external_data(path, model)
        _check_opset(path, model)
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise OnnxFileError(f"{path} is not valid ONNX: {str(error).strip()}") from error
        _check_is_quantized(path, model)
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _read_stored_tensors_directly(model.graph)
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return cls(path, model)

    def path_of(self, node: ir.Node) -> str:
        """Return the path of the module that a node came from; its name where the file does not tell."""
        return self._paths.of(node) or node.name or ""

    def node_of(self, name: str) -> ir.Node | None:
        """Return the node of that name, or that writes a tensor of that name; runtimes tell either."""
        return self._nodes.get(name)

    @property
    def names(self) -> Collection[str]:
        """What :meth:`node_of` knows."""
        return self._nodes

    @cached_property
    def all_nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of the graph, those of branches and loops among them."""
        return tuple(_all_nodes(self.model))

    @cached_property
    def _paths(self) -> ModulePaths:
        return ModulePaths(self.model)

    @cached_property
    def _nodes(self) -> dict[str, ir.Node]:
        nodes = (*self.all_nodes, *self.model.graph)  # of one name, that of the graph goes before that of a branch
        written = {value.name: node for node in nodes for value in node.outputs if value.name}
        # TensorRT calls a node without a name by its first output.
        nameless = {f"node_of_{node.outputs[0].name}": node for node in nodes if node.outputs and not node.name}
        return written | nameless | {node.name: node for node in nodes if node.name}


def read_any(path: FilePath) -> ir.Model:
    """Return the model in a file, quantized or not.

    Raises:
        InputError: ``path`` is no path.
        OnnxFileError: it is not ONNX, or its weights are not there.
    """
    path = as_path(path)
    model = _load(path)
    _check_external_data(path, model)
    return model


def as_path(path: object) -> Path:
    """Return the path of an ONNX file; raise an InputError for a model in its place."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"what is read is an ONNX file, by its path, got {type(path).__name__}: write a model with "
            "fxq.export_onnx(converted, path), the float one with torch.onnx.export, and give the path"
        )
    return Path(path)


def _load(path: Path) -> ir.Model:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "there is no such file"
        raise OnnxFileError(f"{path}: {what}")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise OnnxFileError(f"{path} is not an ONNX file: {error}") from error
    if not proto.ir_version or not proto.graph.node:
        raise OnnxFileError(f"{path} is not an ONNX file, or an empty one: it holds no graph")
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir has no base for what a damaged file makes it raise
        raise OnnxFileError(f"{path} is not valid ONNX: {type(error).__name__}: {error}") from error


def _read_stored_tensors_directly(graph: ir.Graph) -> None:
    """Remove the Identity nodes by which torch's older exporter lets several nodes read one stored tensor."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is not None and source.is_initializer() and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node)


def _check_external_data(path: Path, model: ir.Model) -> None:
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        data = path.parent / tensor.location
        if not data.is_file():
            raise OnnxFileError(
                f"{path} keeps its weights in {tensor.location!r}, which is not beside it: {value.name!r} is missing. "
                "Copy both files together"
            )
        if data.stat().st_size < (tensor.offset or 0) + (tensor.length or 0):
            raise OnnxFileError(f"{data} is too short: {value.name!r} of {path.name} ends behind its end")


def _check_opset(path: Path, model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    least, why = _FIRST_OPSET, "QuantizeLinear"
    for node in _all_nodes(model):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "":
            if "block_size" in node.attributes:
                least, why = max((least, why), (_BLOCK_OPSET, "quantization in blocks"))
            elif "axis" in node.attributes:
                least, why = max((least, why), (_AXIS_OPSET, "quantization per channel"))
    if opset < least:
        raise OnnxFileError(
            f"{path} has opset {opset}, and ONNX has {why} from opset {least} on: export the model again in a newer one"
        )


def _check_is_quantized(path: Path, model: ir.Model) -> None:
    if any(_quantizes(node) for node in _all_nodes(model)):
        return
    if any(node.op_type == "FakeQuantize" for node in _all_nodes(model)):
        raise OnnxFileError(
            f"{path} is quantized in OpenVINO's own operator, FakeQuantize, which no other runtime has, and holds no "
            "QuantizeLinear. Export it with pairs of these: of NNCF, nncf.strip(model, "
            "strip_format=nncf.StripFormat.NATIVE) before torch.onnx.export, or nncf.quantize of the ONNX file"
        )
    raise OnnxFileError(
        f"{path} is not quantized: it has no QuantizeLinear, DequantizeLinear or integer operator. Quantize it "
        "first (fxq quantize), or time it with fxq bench"
    )


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from function


def _quantizes(node: ir.Node) -> bool:
    return node.op_type in _QUANTIZED or node.op_type.startswith("QLinear")
