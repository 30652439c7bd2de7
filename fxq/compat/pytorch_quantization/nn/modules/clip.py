"""Clip: a clamp whose bounds can be learned."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxq.compat.pytorch_quantization.nn import functional
from fxq.errors import RangeError

__all__ = ["Clip"]


class Clip(nn.Module):
    """Clip a tensor.

    Args:
        clip_value_min, clip_value_max: a number or tensor each.
        learn_min, learn_max: make the bound a parameter, which starts at the value given.

    Raises:
        RangeError: a learned bound starts with several values.
    """

    def __init__(
        self, clip_value_min: Any, clip_value_max: Any, learn_min: bool = False, learn_max: bool = False
    ) -> None:
        super().__init__()
        self.clip_value_min = _parameter(clip_value_min) if learn_min else clip_value_min
        self.clip_value_max = _parameter(clip_value_max) if learn_max else clip_value_max

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` clipped; same shape and dtype."""
        return functional.clip(inputs, self.clip_value_min, self.clip_value_max)


def _parameter(value: Any) -> nn.Parameter:
    start = value.detach().float() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
    if start.numel() != 1:
        raise RangeError(
            f"clip_value_min/clip_value_max must be scalar for initializing learnable range, got {tuple(start.shape)}"
        )
    return nn.Parameter(start.reshape(()).clone())
