"""The targets that come with fxq, data only.

Three are runtimes with calibrated activations. ``dynamic`` is ONNX Runtime with ranges measured as it runs, and
``weight_only`` any ONNX runtime, with integer weights and float arithmetic; neither needs calibration data.

Sources: TensorRT developer guide, "Working with Quantized Types"; ONNX Runtime, "Quantize ONNX models", its QDQ
selectors (onnxruntime/core/optimizer/qdq_transformer) and contrib operators (DynamicQuantizeLSTM, MatMulNBits);
measured on the runtimes themselves by ``tests/e2e`` and ``benchmarks``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.constraints import Derived, Same
from fxq.targets.file_rules import FileRules
from fxq.targets.formats import Formats
from fxq.targets.op_rule import OpRule
from fxq.targets.target import Target

_LAYERS = frozenset({"conv", "conv_transpose", "linear", "multihead_attention"})
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_cell"})
_RECURRENT = frozenset({"lstm", "gru", "rnn"}) | _CELLS
# The residual stream of a transformer runs through these: in 8 bits it would lose what the small tokens say.
_NORMALIZATIONS = frozenset({"layer_norm", "rms_norm", "group_norm", "instance_norm"})
_KEEPS_SCALE = Same(("max_pool", "reshape", "transpose", "slice"))
_INT8 = QuantDescriptor()
_UINT8 = QuantDescriptor(unsigned=True, symmetric=False)
_WITH_INTEGER_KERNELS = frozenset(
    {"add", "mul", "cat", "avg_pool", "global_avg_pool", "leaky_relu", "sigmoid", "resize"}
)
_WITHOUT_DATA = FileRules(
    runtime="onnxruntime", affine_weights=False, quantized_outputs_allowed=False, fast_weight_only=True
)
# TensorRT's parser takes QuantizeLinear and DequantizeLinear alone, and has no sequences.
_INTEGER_OPERATORS = (
    "QLinear*", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
)  # fmt: skip
_SEQUENCES = (
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceAt", "SequenceErase", "SequenceLength",
    "SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
)  # fmt: skip

TENSORRT = Target(
    name="tensorrt",
    ops=(
        OpRule(_LAYERS, inputs=True, weight=True),
        OpRule("matmul", inputs=True),
        # With quantizers behind the slices (queries, keys, values) the projection itself would run in float.
        OpRule("linear", output=True, when="sliced_for_integers"),
        OpRule("add", inputs=True, when="absorbed_by_conv"),
        OpRule("cat", inputs=True, when="all_readers_quantized"),
        OpRule("layer_norm", inputs=True, when="after_conv"),
    ),
    constraints=(Same("cat"), _KEEPS_SCALE),
    file=FileRules(
        runtime="tensorrt_rtx",
        affine_activations=False,
        affine_weights=False,
        quantized_outputs_allowed=False,
        channel_scales_behind=True,
        activation_dtypes=("int8", "float8e4m3fn"),
        weight_dtypes=("int4", "int8", "float8e4m3fn"),
        integer_bias=False,
        refused_operators=_INTEGER_OPERATORS + _SEQUENCES,
    ),
    formats=Formats(weight_bits=frozenset({4, 8}), float8=True),
    fused_activations=frozenset({"relu", "relu6", "clip", "silu", "hardswish", "hardsigmoid", "sigmoid", "leaky_relu"}),
)

ONNXRUNTIME = Target(
    name="onnxruntime",
    ops=(
        OpRule({"conv", "conv_transpose"}, inputs=True, weight=True, output=True),
        OpRule({"linear", "multihead_attention"}, inputs=True, weight=True),
        OpRule("matmul", inputs=True),
        # QGemm and MatMulIntegerToFloat give floats as fast as codes, and exactly.
        OpRule({"linear", "matmul"}, output=True, when="read_in_integers"),
        OpRule(_WITH_INTEGER_KERNELS, inputs=True, output=True),
        OpRule("softmax", output=True),
    ),
    constraints=(_KEEPS_SCALE, Derived(("conv", "conv_transpose", "linear"))),
    file=FileRules(
        runtime="onnxruntime",
        # Its formula reads the input twice; ONNX Runtime gives each reader a dequantizer of its own, and then no longer
        # knows the formula.
        whole_gelu=True,
        # On x86 its selectors fuse next to nothing around other codes than uint8.
        slow_activation_dtypes=("int8", "int16", "uint16"),
    ),
    activation=_UINT8,
    formats=Formats(weight_bits=frozenset({2, 3, 4, 5, 6, 7, 8})),
    fused_activations=frozenset({"relu", "relu6", "clip"}),
    float_readers=_NORMALIZATIONS,
)

OPENVINO = Target(
    name="openvino",
    ops=(
        OpRule(_LAYERS, inputs=True, weight=True),
        OpRule(("add", "matmul"), inputs=True),
        # It multiplies activations in integers only where they have no zero point; else in float, what was rounded.
        OpRule({"matmul", "multihead_attention"}, inputs=_INT8, when="may_be_negative"),
        # With a quantizer behind it alone, it and what the convolution before it writes are float.
        OpRule({"cat", "max_pool"}, inputs=True, when="all_readers_quantized"),
    ),
    constraints=(Same("cat"), _KEEPS_SCALE),
    file=FileRules(runtime="openvino", affine_weights=False, quantized_outputs_allowed=False),
    activation=_UINT8,
    formats=Formats(weight_bits=frozenset({4, 8})),
    fused_activations=frozenset({"relu", "relu6", "clip", "silu", "hardswish"}),
    float_readers=_NORMALIZATIONS,
)

DYNAMIC = Target(
    name="dynamic",
    ops=(
        OpRule(_CELLS | {"linear", "lstm", "multihead_attention"}, inputs=True, weight=True),
        OpRule(("embedding", "matmul"), weight=True),
        OpRule(
            "matmul",
            inputs=True,
            when="on_request",
            why="ONNX Runtime multiplies two activations faster in float; a rule that names it makes it integers",
        ),
        OpRule(
            "gru",
            weight=True,
            why="ONNX Runtime has no integer GRU: the weights are stored as integers and computed with in float",
        ),
        OpRule(
            "rnn",
            weight=True,
            why="ONNX Runtime has no integer RNN: the weights are stored as integers and computed with in float",
        ),
        OpRule("conv", why="ONNX Runtime's integer convolution is slower than its float one"),
        OpRule("conv_transpose", why="ONNX Runtime has no integer transposed convolution"),
    ),
    file=_WITHOUT_DATA,
    activation=_UINT8.replace(calibrator="dynamic"),
)

WEIGHT_ONLY = Target(
    name="weight_only",
    ops=(OpRule(_LAYERS | _RECURRENT | {"matmul", "embedding"}, weight=True),),
    file=_WITHOUT_DATA,
    activation=None,
    formats=Formats(
        activation_bits=frozenset(),
        weight_bits=frozenset({4, 8}),
        packed_bits=frozenset({4}),
        block_sizes=frozenset({32, 64, 128}),
        block_kinds=frozenset({"linear", "multihead_attention"}),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {item.name: item for item in (ONNXRUNTIME, OPENVINO, TENSORRT, DYNAMIC, WEIGHT_ONLY)}
)
