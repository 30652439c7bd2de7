"""Helpers for quantized modules of one's own: mixins that make the quantizers, and the reading of their arguments.

The mixins go behind the float class::

    class QuantMaxPool2d(pooling.MaxPool2d, _utils.QuantInputMixin):
        def __init__(self, kernel_size, **kwargs):
            super().__init__(kernel_size)
            self.init_quantizer(_utils.pop_quant_desc_in_kwargs(self.__class__, input_only=True, **kwargs))

        def forward(self, input):
            return super().forward(self._input_quantizer(input))
"""

from typing import Any, ClassVar

from torch import nn

from fxq.compat.pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QUANT_DESC_8BIT_PER_TENSOR
from fxq.errors import DescriptorError, DescriptorTypeError
from fxq.quant.descriptor import QuantDescriptor

__all__ = ["QuantInputMixin", "QuantMixin", "pop_quant_desc_in_kwargs"]


class QuantInputMixin:
    """Gives a module a quantizer for its input."""

    default_quant_desc_input: ClassVar[QuantDescriptor | None] = QUANT_DESC_8BIT_PER_TENSOR

    @classmethod
    def set_default_quant_desc_input(cls, value: QuantDescriptor) -> None:
        """Set the descriptor that later instances of this class get when none is given."""
        cls.default_quant_desc_input = checked_descriptor(value)

    def init_quantizer(self, quant_desc_input: QuantDescriptor) -> None:
        """Make ``_input_quantizer``; call it in ``__init__``, after that of torch.nn.Module.

        Raises:
            DescriptorError: the descriptor asks for integer codes.
        """
        self._input_quantizer = TensorQuantizer(checked_fake(quant_desc_input))

    @property
    def input_quantizer(self) -> Any:
        """The quantizer of the input."""
        return self._input_quantizer


class QuantMixin:
    """Gives a module quantizers for its input and its weight."""

    default_quant_desc_input: ClassVar[QuantDescriptor | None] = QUANT_DESC_8BIT_PER_TENSOR
    default_quant_desc_weight: ClassVar[QuantDescriptor] = QUANT_DESC_8BIT_PER_TENSOR

    @classmethod
    def set_default_quant_desc_input(cls, value: QuantDescriptor) -> None:
        """Set the descriptor that later instances of this class get when none is given."""
        cls.default_quant_desc_input = checked_descriptor(value)

    @classmethod
    def set_default_quant_desc_weight(cls, value: QuantDescriptor) -> None:
        """Set the descriptor that later instances of this class get when none is given."""
        cls.default_quant_desc_weight = checked_descriptor(value)

    def init_quantizer(
        self, quant_desc_input: QuantDescriptor, quant_desc_weight: QuantDescriptor, num_layers: int | None = None
    ) -> None:
        """Make ``_input_quantizer`` and ``_weight_quantizer``; call it in ``__init__``, after that of torch.nn.Module.

        Args:
            quant_desc_input, quant_desc_weight: how to quantize.
            num_layers: make the lists ``_input_quantizers`` and ``_weight_quantizers`` of so many instead.

        Raises:
            DescriptorError: a descriptor asks for integer codes.
        """
        checked_fake(quant_desc_input), checked_fake(quant_desc_weight)
        if num_layers is None:
            self._input_quantizer = TensorQuantizer(quant_desc_input)
            self._weight_quantizer = TensorQuantizer(quant_desc_weight)
            return
        self._input_quantizers = nn.ModuleList(TensorQuantizer(quant_desc_input) for _ in range(num_layers))
        self._weight_quantizers = nn.ModuleList(TensorQuantizer(quant_desc_weight) for _ in range(num_layers))

    @property
    def input_quantizer(self) -> Any:
        """The quantizer of the input."""
        return self._input_quantizer

    @property
    def weight_quantizer(self) -> Any:
        """The quantizer of the weight."""
        return self._weight_quantizer


def pop_quant_desc_in_kwargs(quant_cls: Any, input_only: bool = False, **kwargs: Any) -> Any:
    """Return the descriptors of ``kwargs``: (input, weight), or the input's alone with ``input_only``.

    Args:
        quant_cls: the class whose defaults stand for what is not given.
        input_only: there is no weight.
        **kwargs: quant_desc_input and quant_desc_weight.

    Raises:
        DescriptorTypeError: another keyword.
    """
    quant_desc_input = kwargs.pop("quant_desc_input", None) or quant_cls.default_quant_desc_input
    quant_desc_weight = None
    if not input_only:
        quant_desc_weight = kwargs.pop("quant_desc_weight", None) or quant_cls.default_quant_desc_weight
    if kwargs:
        raise DescriptorTypeError(f"Unused keys: {sorted(kwargs)}; {quant_cls.__name__} does not take them")
    return quant_desc_input if input_only else (quant_desc_input, quant_desc_weight)


def checked_descriptor(descriptor: QuantDescriptor) -> QuantDescriptor:
    """Return ``descriptor``, or raise a DescriptorError if it is none."""
    if not isinstance(descriptor, QuantDescriptor):
        raise DescriptorError(f"{descriptor!r} is not an instance of QuantDescriptor!")
    return descriptor


def checked_fake(descriptor: QuantDescriptor) -> QuantDescriptor:
    """Return ``descriptor``, or raise a DescriptorError if it asks for integer codes."""
    if not checked_descriptor(descriptor).fake_quant:
        raise DescriptorError("Only fake quantization is supported! A module computes with dequantized values")
    return descriptor
