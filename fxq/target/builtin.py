"""The targets that come with fxq, data only.

Sources: TensorRT developer guide, "Working with Quantized Types"; ONNX Runtime, "Quantize ONNX models" and its QDQ
selectors (onnxruntime/core/optimizer/qdq_transformer); measured on the runtimes themselves by ``tests/e2e``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor
from fxq.target.target import Target

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "matmul"})
# The residual stream of a transformer runs through these: in 8 bits it would lose what the small tokens say.
_NORMALIZATIONS = frozenset({"layer_norm", "group_norm", "instance_norm"})
_MOVES_DATA = frozenset({"max_pool", "reshape", "transpose", "slice"})

TENSORRT = Target(
    name="tensorrt",
    activation=QuantDescriptor(),
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset({8}),
    weight_bits=frozenset({4, 8}),
    quantize_inputs=_WEIGHTED,
    fused_activations=frozenset({"relu", "relu6", "clip", "silu", "hardswish", "hardsigmoid", "sigmoid", "leaky_relu"}),
    quantize_if_surrounded=frozenset({"cat"}),
    quantize_after_conv=frozenset({"layer_norm"}),
    residual_adds=True,
    share_scale=frozenset({"cat"}),
    keep_scale=_MOVES_DATA,
)

ONNXRUNTIME = Target(
    name="onnxruntime",
    activation=QuantDescriptor(unsigned=True, symmetric=False),
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset({8}),
    weight_bits=frozenset({2, 3, 4, 5, 6, 7, 8}),
    symmetric_only=False,
    quantize_inputs=_WEIGHTED | {"add", "mul", "cat", "avg_pool", "global_avg_pool", "leaky_relu", "sigmoid", "resize"},
    quantize_outputs=_WEIGHTED
    | {"add", "mul", "cat", "avg_pool", "global_avg_pool", "leaky_relu", "sigmoid", "softmax", "resize"},
    fused_activations=frozenset({"relu", "relu6", "clip"}),
    float_readers=_NORMALIZATIONS,
    keep_scale=_MOVES_DATA,
    quantize_graph_outputs=True,
    integer_bias=True,
)

OPENVINO = Target(
    name="openvino",
    activation=QuantDescriptor(unsigned=True, symmetric=False),
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset({8}),
    weight_bits=frozenset({4, 8}),
    symmetric_only=False,
    quantize_inputs=_WEIGHTED | {"add"},
    fused_activations=frozenset({"relu", "relu6", "clip", "silu", "hardswish"}),
    float_readers=_NORMALIZATIONS,
    keep_scale=_MOVES_DATA,
)

TARGETS: Mapping[str, Target] = MappingProxyType({item.name: item for item in (TENSORRT, ONNXRUNTIME, OPENVINO)})


def get_target(name: str) -> Target:
    """Return a built-in target by name; one that does not exist is a TargetError that lists them."""
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}; there are {', '.join(sorted(TARGETS))}")
    return TARGETS[name]
