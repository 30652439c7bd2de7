"""Which node a runtime means when it refuses a file: each names it in words of its own."""

import re

import onnx_ir as ir

from fxq.verification.onnx_file import OnnxFile

# What comes before a node's name, or the name of what it writes. After it words go on with one of the ends: names may
# hold blanks and brackets themselves.
_BEFORE_NODE = re.compile(
    r"Invalid Node - |In node -?\d+ with name: |Error \((?:I\w+Layer )?"  # TensorRT's parser, its builder
    r"|Node \(|in node \(|In Node, \(\"|node with name '"  # ONNX Runtime: shapes, types, attributes, kernels
    r"|ONNX node '<Node\(\w+\): "  # OpenVINO
)
_ENDS = ("", *"\n)'\">,;: ")
# An operator that the runtime does not know, with its version or the name of its domain.
_UNKNOWN_OPERATOR = re.compile(
    r"(\w+)\(-?\d+\) is not a registered function/op"  # ONNX Runtime
    r"|No conversion rule found for operations: (?:[\w.]+\.)?(\w+)"  # OpenVINO
)


def refused_node(file: OnnxFile, words: str) -> ir.Node | None:
    """Return the node that ``words`` name first; the first of an operator that the runtime does not know."""
    for found in _BEFORE_NODE.finditer(words):
        rest = words[found.end() :]
        known = [name for name in file.names if rest.startswith(name) and rest[len(name) :][:1] in _ENDS]
        if known:
            return file.node_of(max(known, key=len))
    unknown = _UNKNOWN_OPERATOR.search(words)
    operator = None if unknown is None else unknown[1] or unknown[2]
    return next((node for node in file.all_nodes if node.op_type == operator), None)
