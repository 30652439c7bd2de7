"""The path of the module that a node of a file came from, as far as the file tells.

torch's exporter stores it with each node. Its older one, of TorchScript, names nodes by the modules that were called:
``/layer1/layer1.0/conv1/Conv`` came from ``layer1.0.conv1``. Each is called by the end of its path, from the last part
on that is no number, and ``_1``, ``_2`` count the calls of one module. What such a node writes is called by it, and
tells where tools renamed it or added one in its place. fxq names nodes ``layer1.0.conv1/Conv``.

Source: torch/onnx/_internal/torchscript_exporter/utils.py, ``_setup_trace_module_map``;
torch/csrc/jit/passes/onnx/naming.cpp, ``ScopedNodeNameGenerator``.
"""

import ast
import re
from collections.abc import Iterator
from functools import cached_property

import onnx_ir as ir

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")
_SCOPES = "pkg.torch.onnx.name_scopes"
_COUNT = re.compile(r"_\d+$")
_OUTPUT = re.compile(r"_output_\d+$")
# ONNX Runtime adds how it fused a node, to its name.
_FUSION = re.compile(r"(/\w+Fusion/?)+$")
# NNCF calls what it inserts in a module of torch by the call that it stands behind, and these numbers of it.
_NNCF_HOOK = re.compile(r"/\d+__\d+\.\d+$")


class ModulePaths:
    """Where the nodes of one model came from; the model is not changed."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def of(self, node: ir.Node) -> str:
        """Return the path of the module; "" where the file does not tell.

        A quantizer that tells nothing itself belongs to what writes the tensor that it rounds, else to what reads it; a
        node without a name, as a function that was written out leaves them, to what reads it.
        """
        is_quantizer = node.op_type in QUANTIZERS
        around = (*(_writer(node) if is_quantizer else ()), *(_readers(node) if is_quantizer or not node.name else ()))
        return next(filter(None, map(self._told_by, (node, *around))), "")

    def _told_by(self, node: ir.Node) -> str:
        scopes = node.metadata_props.get(_SCOPES)
        if scopes:
            found = _listed(scopes)  # from the model's own, "", to the node's name
            return found[-2] if len(found) > 1 else ""
        if self._model.producer_name == "fxq":
            return (node.name or "").rpartition("/")[0]
        called, _, operator = _name_in_old_exporter(node).rpartition("/")
        # Other tools call a quantizer by the tensor that it rounds, whoever wrote that.
        is_named_by_tensor = node.op_type in QUANTIZERS and _COUNT.sub("", operator) != node.op_type
        is_inserted = is_named_by_tensor or _NNCF_HOOK.search(called) is not None
        return self._of_old_exporter(node, called[1:]) if called.startswith("/") and not is_inserted else ""

    def _of_old_exporter(self, node: ir.Node, called: str) -> str:
        *above, last = called.split("/")
        is_counted = bool(_COUNT.search(last)) and _COUNT.sub("", f"/{called}") in self._all_called
        ends = [last, _COUNT.sub("", last)] if is_counted else [last]
        # A stored tensor tells the whole path, also where modules above were not called themselves.
        owners = [owner for owner in _owners(node) for end in ends if f".{owner}".endswith(f".{end}")]
        return owners[0] if owners else _joined([*above, ends[-1]])

    @cached_property
    def _all_called(self) -> frozenset[str]:
        return frozenset(_name_in_old_exporter(node).rpartition("/")[0] for node in self._model.graph)


def _name_in_old_exporter(node: ir.Node) -> str:
    """Return the name that torch's older exporter gave a node, "" where it is nobody's."""
    written = next((str(value.name) for value in node.outputs if _OUTPUT.search(value.name or "")), "")
    name = node.name if (node.name or "").startswith("/") else _OUTPUT.sub("", written)
    return _FUSION.sub("", name or "")


def _joined(parts: list[str]) -> str:
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()  # the module before it is a sequence, whose name it begins with
        path.append(part)
    return ".".join(path)


def _owners(node: ir.Node) -> Iterator[str]:
    """Yield the paths of the modules that the stored tensors of a node are named by: ``conv1`` of ``conv1.weight``."""
    for value in node.inputs:
        source = _before_quantizers(value)
        if source is not None and source.is_initializer() and "." in (source.name or ""):
            yield str(source.name).rpartition(".")[0]


def _writer(quantizer: ir.Node) -> Iterator[ir.Node]:
    """Yield what writes the tensor that a quantizer rounds, if anything does."""
    source = _before_quantizers(quantizer.inputs[0])
    writer = None if source is None else source.producer()
    if writer is not None:
        yield writer


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """Yield what reads a node, through quantizers."""
    waiting, seen = [node], {node}
    while waiting:
        for value in waiting.pop(0).outputs:
            for reader, _ in value.uses():
                if reader.op_type not in QUANTIZERS:
                    yield reader
                elif reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)


def _before_quantizers(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type in QUANTIZERS:
        value = node.inputs[0]
    return value


def _listed(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever somebody wrote there
        return []
    return [str(scope) for scope in found] if isinstance(found, list) else []
