"""What the quantized modules of fxq.compat share: the quantizers and helpers of pytorch-quantization."""

import inspect
from typing import Any, ClassVar

from fxq.compat.pytorch_quantization.nn.modules._utils import QuantInputMixin, QuantMixin, checked_fake
from fxq.compat.pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QUANT_DESC_8BIT_PER_TENSOR
from fxq.errors import DescriptorTypeError
from fxq.nn import Quantized
from fxq.quant.descriptor import QuantDescriptor


class _Compat(Quantized):
    quantizer_type: ClassVar[type[TensorQuantizer]] = TensorQuantizer
    default_quant_desc_input: ClassVar[QuantDescriptor | None] = QUANT_DESC_8BIT_PER_TENSOR

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # torch names no keyword that its LSTM does not have; elsewhere say it as the original.
        known = inspect.signature(self.replaced_type()).parameters
        unused = sorted(set(kwargs) - {"quant_desc_input", "quant_desc_weight", *known})
        if unused and "kwargs" not in known:
            raise DescriptorTypeError(f"Unused keys: {unused}; {type(self).__name__} takes {', '.join(known)}")
        super().__init__(*args, **kwargs)

    def _add_quantizer(self, name: str, descriptor: QuantDescriptor | None) -> None:
        if descriptor is not None:
            checked_fake(descriptor)
        super()._add_quantizer(name, descriptor)


class CompatModule(_Compat, QuantMixin):
    """A module with quantized input and weight; put it before fxq's module among the bases."""


class CompatInputModule(_Compat, QuantInputMixin):
    """A module with quantized input; put it before fxq's module among the bases."""
