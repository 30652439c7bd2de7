"""How close a quantized model stays to the float one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def sqnr_db(reference: Any, output: Any) -> float:
    """Return the signal to quantization noise ratio: 20 log10(|reference| / |reference - output|) in dB.

    Args:
        reference, output: what the two models return; over all floating point tensors in it.
    """
    signal, noise = _flat(reference), _flat(reference) - _flat(output)
    return float(20 * torch.log10(signal.norm() / noise.norm()))


def _flat(output: Any) -> Tensor:
    tensors = [value for value in pytree.tree_leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.cat([value.detach().double().flatten() for value in tensors])
