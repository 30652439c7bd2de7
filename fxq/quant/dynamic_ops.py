"""The operators of a lowered graph that quantize an activation with the range it has right now.

``step = (max(x, 0) - min(x, 0)) / 255``, ``zero_point = round(-min(x, 0) / step)``,
``q = clamp(round(x / step) + zero_point, 0, 255)``: uint8, one range for the whole tensor, no calibration. The integer
products are exact; they are scaled back, and the bias is added, in float32.

The range is that of all samples of the batch together, so what a sample gives depends on its company.

They have no gradient. Importing this module registers them. Source: ONNX DynamicQuantizeLinear and MatMulInteger.
"""

import torch
from torch import Tensor

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
    step = (high - low) / torch.full((), float(HI), device=x.device)
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


DYNAMIC_LINEAR = torch.ops.fxq.dynamic_linear.default
DYNAMIC_MATMUL = torch.ops.fxq.dynamic_matmul.default
