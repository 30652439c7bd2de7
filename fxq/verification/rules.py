"""The rules that a file is held to, in the order in which they are told. A rule is a function; adding one is a line.

Most are about pairs of quantizers, around which runtimes fuse; a file that computes with integers has none.
"""

from collections.abc import Callable, Iterator

from fxq.verification.activation_rules import quantizers_before_activations, quantizers_in_activations
from fxq.verification.case import Case
from fxq.verification.finding import Finding
from fxq.verification.format_rules import (
    activation_scales,
    control_flow,
    integer_quantizers,
    quantizers,
    refused_operators,
)
from fxq.verification.layer_rules import biases, float_layers, half_quantized_layers, layer_outputs, slow_codes
from fxq.verification.placement_rules import (
    equal_ranges,
    lone_quantizers,
    mixed_operands,
    repeated_quantizers,
    residual_adds,
)

FileRule = Callable[[Case], Iterator[Finding]]

FILE_RULES: tuple[FileRule, ...] = (
    quantizers,
    activation_scales,
    refused_operators,
    control_flow,
    half_quantized_layers,
    residual_adds,
    quantizers_before_activations,
    quantizers_in_activations,
    mixed_operands,
    lone_quantizers,
    layer_outputs,
    slow_codes,
    biases,
    equal_ranges,
    repeated_quantizers,
    float_layers,
)
INTEGER_FILE_RULES: tuple[FileRule, ...] = (integer_quantizers, activation_scales, refused_operators, control_flow)
