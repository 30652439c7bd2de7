"""The targets that come with fxq, data only.

Three are runtimes with calibrated activations. ``dynamic`` is ONNX Runtime with ranges measured as it runs, and
``weight_only`` any ONNX runtime, with integer weights and float arithmetic; neither needs calibration data.

Sources: TensorRT developer guide, "Working with Quantized Types"; ONNX Runtime, "Quantize ONNX models", its QDQ
selectors (onnxruntime/core/optimizer/qdq_transformer) and contrib operators (DynamicQuantizeLSTM, MatMulNBits);
measured on the runtimes themselves by ``tests/e2e`` and ``benchmarks``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.target import Target

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "matmul"})
# The residual stream of a transformer runs through these: in 8 bits it would lose what the small tokens say.
_NORMALIZATIONS = frozenset({"layer_norm", "group_norm", "instance_norm"})
_MOVES_DATA = frozenset({"max_pool", "reshape", "transpose", "slice"})
_ATTENTION = frozenset({"multihead_attention"})
_LAYERS = frozenset({"conv", "conv_transpose", "linear"}) | _ATTENTION
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_cell"})
_RECURRENT = frozenset({"lstm", "gru", "rnn"}) | _CELLS

TENSORRT = Target(
    name="tensorrt",
    activation=QuantDescriptor(),
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset({8}),
    weight_bits=frozenset({4, 8}),
    float8=True,
    quantize_inputs=_WEIGHTED | _ATTENTION,
    swapped_kinds=_LAYERS,
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
    quantize_inputs=_WEIGHTED
    | _ATTENTION
    | {"add", "mul", "cat", "avg_pool", "global_avg_pool", "leaky_relu", "sigmoid", "resize"},
    swapped_kinds=_LAYERS,
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
    quantize_inputs=_WEIGHTED | _ATTENTION | {"add"},
    swapped_kinds=_LAYERS,
    fused_activations=frozenset({"relu", "relu6", "clip", "silu", "hardswish"}),
    float_readers=_NORMALIZATIONS,
    keep_scale=_MOVES_DATA,
)

DYNAMIC = Target(
    name="dynamic",
    activation=QuantDescriptor(unsigned=True, symmetric=False, calibrator="dynamic"),
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset({8}),
    weight_bits=frozenset({8}),
    symmetric_only=False,
    quantize_inputs=_ATTENTION | _CELLS | {"linear", "lstm"},
    swapped_kinds=_ATTENTION | _RECURRENT | {"linear", "matmul", "embedding"},
    on_request=frozenset({"matmul"}),
    reasons=(
        ("conv", "ONNX Runtime's integer convolution is slower than its float one"),
        ("conv_transpose", "ONNX Runtime has no integer transposed convolution"),
        ("matmul", "ONNX Runtime multiplies two activations faster in float; a rule that names it makes it integers"),
        ("gru", "ONNX Runtime has no integer GRU: the weights are stored as integers and computed with in float"),
        ("rnn", "ONNX Runtime has no integer RNN: the weights are stored as integers and computed with in float"),
    ),
)

WEIGHT_ONLY = Target(
    name="weight_only",
    activation=None,
    weight=QuantDescriptor(axis=0),
    activation_bits=frozenset(),
    weight_bits=frozenset({4, 8}),
    quantize_inputs=frozenset(),
    swapped_kinds=_ATTENTION | _RECURRENT | _WEIGHTED | {"embedding"},
    packed_bits=frozenset({4}),
    block_sizes=frozenset({32, 64, 128}),
    block_kinds=_ATTENTION | {"linear"},
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {item.name: item for item in (ONNXRUNTIME, OPENVINO, TENSORRT, DYNAMIC, WEIGHT_ONLY)}
)


def get_target(name: str) -> Target:
    """Return a built-in target by name; one that does not exist is a TargetError that lists them."""
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
