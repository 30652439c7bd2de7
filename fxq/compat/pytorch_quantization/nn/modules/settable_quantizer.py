"""What a script of pytorch-quantization sets on a quantizer after it is made, or reads under its private names."""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import RangeShapeError
from fxq.nn import tensor_quantizer


class SettableQuantizer(tensor_quantizer.TensorQuantizer):
    """fxq's quantizer with setters, and with ``pre_quant_scale`` (SmoothQuant), which is in the state dict."""

    @property
    def num_bits(self) -> int | tuple[int, int]:
        """Bits of a code; (4, 3) for float8 e4m3."""
        return self._descriptor.num_bits

    @num_bits.setter
    def num_bits(self, value: int | tuple[int, int]) -> None:
        self._descriptor = self._descriptor.replace(num_bits=value)

    @property
    def unsigned(self) -> bool:
        """Do the codes start at 0?"""
        return self._descriptor.unsigned

    @unsigned.setter
    def unsigned(self, value: bool) -> None:
        self._descriptor = self._descriptor.replace(unsigned=value)

    @property
    def narrow_range(self) -> bool:
        """Is the lowest signed code left out?"""
        return bool(self._descriptor.narrow_range)

    @narrow_range.setter
    def narrow_range(self, value: bool) -> None:
        self._descriptor = self._descriptor.replace(narrow_range=value)

    # Scripts look at these under the original's private names.
    _num_bits, _unsigned, _narrow_range = num_bits, unsigned, narrow_range
    _axis, _fake_quant = tensor_quantizer.TensorQuantizer.axis, tensor_quantizer.TensorQuantizer.fake_quant

    @property
    def pre_quant_scale(self) -> Tensor | None:
        """What the input is multiplied with before all else; None for nothing. Assign a number, an array or a tensor.

        Raises:
            RangeShapeError: on assignment of another shape than the stored one.
        """
        return self._buffers.get("_pre_quant_scale")

    @pre_quant_scale.setter
    def pre_quant_scale(self, value: Any) -> None:
        scale = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        stored = self.pre_quant_scale
        if stored is None:
            self.register_buffer("_pre_quant_scale", scale)
            return
        if scale.shape != stored.shape:
            raise RangeShapeError(
                f"Changing shape when setting pre_quant_scale is not allowed: {tuple(stored.shape)}, got "
                f"{tuple(scale.shape)}"
            )
        stored.copy_(scale)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == "_amax" and value is None:  # scripts ask hasattr(quantizer, "_amax")
            raise AttributeError(f"{self.owner} has no '_amax': its range is dynamic")
        return value

    def __delattr__(self, name: str) -> None:
        if name == "_amax":
            self.reset_amax()
        else:
            super().__delattr__(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}_pre_quant_scale")
        if loaded is not None and self.pre_quant_scale is None:
            self.pre_quant_scale = loaded
        super()._load_from_state_dict(state_dict, prefix, *args)
