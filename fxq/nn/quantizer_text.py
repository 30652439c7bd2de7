"""One line about a TensorQuantizer, for ``print(model)``."""

import torch
from torch import Tensor

from fxq.quant.descriptor import QuantDescriptor


def describe_format(descriptor: QuantDescriptor) -> str:
    """Return such as ``unsigned 8bit narrow affine fake axis=0``."""
    shares = "per-tensor" if descriptor.axis is None else f"axis={descriptor.axis}"
    words = [
        "unsigned" if descriptor.unsigned else "",
        "float8 e4m3" if descriptor.is_float8 else f"{descriptor.num_bits}bit",
        "narrow" if descriptor.narrow_range else "",
        "" if descriptor.symmetric else "affine",
        "fake" if descriptor.fake_quant else "integer",
        shares if descriptor.block_size is None else f"block={descriptor.block_size}",
    ]
    return " ".join(word for word in words if word)


def describe_range(bounds: tuple[Tensor, ...]) -> str:
    """Return such as ``amax=2.6400``, ``amax=[0.0000, 0.7817](64)``, ``range=[-1.0000, 2.0000]`` or ``dynamic``.

    Args:
        bounds: () without a stored range, (amax,) or (low, high). Many channels show their lowest and highest value.
    """
    if not bounds:
        return "dynamic"
    label = "amax" if len(bounds) == 1 else "range"
    values = torch.stack([bound.detach().float() for bound in bounds])
    channels = values.shape[1:].numel()
    if values.is_meta:
        return f"{label}=meta({channels})"
    if label == "amax" and channels == 1:
        return f"{label}={values.item():.4f}"
    count = f"({channels})" if channels > 1 else ""
    return f"{label}=[{values.min().item():.4f}, {values.max().item():.4f}]{count}"
