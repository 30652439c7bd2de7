"""A target of one's own: Qualcomm QNN's HTP backend, which runs QDQ files through ONNX Runtime's QNN provider.

Activations are affine uint16 and weights affine uint8 per tensor, the widths that the provider's documentation uses.
Where each rule comes from stands in README.md.
"""

from fxq import Derived, FileRules, Fixed, Formats, OpRule, QuantDescriptor, Same, Target

_LAYERS = ("conv", "conv_transpose", "linear")

TARGET = Target(
    name="qnn",
    ops=(
        # The backend computes with integers only: what reads or makes floats falls back to the CPU.
        OpRule(_LAYERS, inputs=True, weight=True, output=True),
        OpRule(("add", "mul", "cat", "avg_pool", "global_avg_pool", "resize"), inputs=True, output=True),
        OpRule(("matmul", "sigmoid", "tanh", "softmax"), inputs=True, output=True),
    ),
    constraints=(
        Same(("max_pool", "avg_pool", "resize", "reshape", "transpose", "slice")),
        Fixed("sigmoid", 0, 65535 / 65536),  # step 1/65536, zero point 0
        Fixed("tanh", -1, 32767 / 32768),  # step 1/32768, zero point 32768
        Derived(_LAYERS),
    ),
    file=FileRules(
        activation_dtypes=("uint16",),
        weight_dtypes=("uint8",),
        minimum_opset=21,  # the first with 16-bit QuantizeLinear
        dynamic_batch=False,  # the backend compiles for fixed shapes
    ),
    activation=QuantDescriptor(num_bits=16, unsigned=True, symmetric=False),
    weight=QuantDescriptor(unsigned=True, symmetric=False),
    formats=Formats(activation_bits=frozenset({16})),
    # ONNX Runtime drops these in front of an affine quantizer, whose clamp does the same.
    fused_activations=frozenset({"relu", "relu6", "clip"}),
)
