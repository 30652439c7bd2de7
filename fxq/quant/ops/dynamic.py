"""The operators of a lowered graph that quantize an activation with the range it has right now.

``step = (max(x, 0) - min(x, 0)) / 255``, ``zero_point = round(-min(x, 0) / step)``,
``q = clamp(round(x / step) + zero_point, 0, 255)``: uint8, one range for the whole tensor, no calibration. The integer
products are exact; they are scaled back, and the bias is added, in float32.

The range is that of all samples of the batch together, so what a sample gives depends on its company.

In ONNX a linear layer is DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(., Mul(step of x, step of weight)) ->
Add. ONNX Runtime makes one DynamicQuantizeMatMul of them, per channel too, if the weight is stored as (in, out), the
steps are multiplied first and the bias is the second operand of the Add (core/optimizer/matmul_integer_to_float.cc and
dynamic_quantize_matmul_fusion.cc); the transposition written here is taken into the stored weight later.

They have no gradient. Importing this module registers them. Source: ONNX DynamicQuantizeLinear and MatMulInteger.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxq.quant.ops.lowered_op import LoweredOp

HI = 255


@torch.library.custom_op(
    "fxq::dynamic_linear", mutates_args=(), schema="(Tensor x, Tensor codes, Tensor step, Tensor? bias) -> Tensor"
)
def dynamic_linear(x: Tensor, codes: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` with ``x`` quantized on the fly, in the dtype of ``x``.

    Args:
        x: (..., in); float32, float16 or bfloat16.
        codes: int8, (out, in): the weight is ``codes * step``.
        step: () or (out,).
        bias: (out,), float.
    """
    product, x_step = integer_product(x, codes)
    result = product * (x_step * step.float())
    return (result if bias is None else result + bias.float()).to(x.dtype)


@torch.library.custom_op("fxq::dynamic_matmul", mutates_args=(), schema="(Tensor a, Tensor b) -> Tensor")
def dynamic_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` with both quantized on the fly; shapes broadcast as in torch.matmul."""
    a_codes, a_step = dynamic_codes(a)
    b_codes, b_step = dynamic_codes(b)
    return (torch.matmul(a_codes.double(), b_codes.double()).float() * (a_step * b_step)).to(a.dtype)


def dynamic_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of ``x`` less their zero point, as float32, and the step; both as ONNX defines them."""
    values = x.float()
    low, high = torch.aminmax(values) if values.numel() else (values.new_zeros(()), values.new_zeros(()))
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low) / torch.full((), float(HI), dtype=torch.float32, device=x.device)
    step = torch.where(step == 0, torch.ones_like(step), step)  # a tensor of zeros
    zero_point = torch.round(-low / step).clamp_(0, HI)
    return torch.round(values / step).add_(zero_point).clamp_(0, HI).sub_(zero_point), step


def integer_product(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integer product of quantized ``x`` (..., in) and ``codes`` (out, in) as float32, and the step of x."""
    x_codes, x_step = dynamic_codes(x)
    # float64 holds these sums exactly, and its product runs on every device; float32 would round from 519 terms on.
    return torch.nn.functional.linear(x_codes.double(), codes.double()).float(), x_step


@dynamic_linear.register_fake
def _fake_dynamic_linear(x: Tensor, codes: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


@dynamic_matmul.register_fake
def _fake_dynamic_matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _linear_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.onnx_terms import FLOAT, cast  # noqa: PLC0415 - see LoweredOp.translation

    def translated(x: Any, codes: Any, step: Any, bias: Any | None) -> Any:
        x_codes, x_step, x_zero = op.DynamicQuantizeLinear(cast(op, x, FLOAT))
        product = op.Cast(op.MatMulInteger(x_codes, op.Transpose(codes, perm=[1, 0]), x_zero), to=FLOAT)
        result = op.Mul(product, op.Mul(x_step, cast(op, step, FLOAT)))
        result = result if bias is None else op.Add(result, cast(op, bias, FLOAT))
        return cast(op, result, x.dtype)

    return translated


def _matmul_in_onnx(op: Any) -> Callable[..., Any]:
    from fxq.quant.ops.onnx_terms import FLOAT, cast  # noqa: PLC0415 - see LoweredOp.translation

    def translated(a: Any, b: Any) -> Any:
        a_codes, a_step, a_zero = op.DynamicQuantizeLinear(cast(op, a, FLOAT))
        b_codes, b_step, b_zero = op.DynamicQuantizeLinear(cast(op, b, FLOAT))
        product = op.Cast(op.MatMulInteger(a_codes, b_codes, a_zero, b_zero), to=FLOAT)
        return cast(op, op.Mul(product, op.Mul(a_step, b_step)), a.dtype)

    return translated


DYNAMIC_LINEAR = torch.ops.fxq.dynamic_linear.default
DYNAMIC_MATMUL = torch.ops.fxq.dynamic_matmul.default
_ONE = "DynamicQuantizeLinear"
ROWS = (
    LoweredOp(DYNAMIC_LINEAR, "dynamic", _linear_in_onnx, stored=(1, 2), writes=(_ONE,)),
    LoweredOp(DYNAMIC_MATMUL, "dynamic", _matmul_in_onnx, writes=(_ONE, _ONE)),
)
