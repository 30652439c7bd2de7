"""What every quantized module shares: its quantizers, their default descriptors, and taking over a float module.

A quantized module is a subclass of the module it replaces, takes all its arguments, and has its state dict plus the
ranges ``_input_quantizer._amax`` and ``_weight_quantizer._amax``, the names of pytorch-quantization.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fxq.errors import DescriptorError, InputError
from fxq.nn.tensor_quantizer import TensorQuantizer
from fxq.quant.descriptor import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW, QUANT_DESC_8BIT_PER_TENSOR, QuantDescriptor


class Quantized(nn.Module):
    """Base of the quantized modules: default descriptors, and taking over a float module."""

    default_quant_desc_input: ClassVar[QuantDescriptor | None] = QUANT_DESC_8BIT_PER_TENSOR
    default_quant_desc_weight: ClassVar[QuantDescriptor] = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW

    @classmethod
    def set_default_quant_desc_input(cls, descriptor: QuantDescriptor) -> None:
        """Set the descriptor that later instances of this class get when none is given."""
        cls.default_quant_desc_input = _checked(descriptor)

    @classmethod
    def set_default_quant_desc_weight(cls, descriptor: QuantDescriptor) -> None:
        """Set the descriptor that later instances of this class get when none is given."""
        cls.default_quant_desc_weight = _checked(descriptor)

    @classmethod
    def replaced_type(cls) -> type[nn.Module]:
        """Return the torch.nn class that this one replaces."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("torch.nn."))

    def _add_quantizer(self, name: str, descriptor: QuantDescriptor | None) -> None:
        self.add_module(name, None if descriptor is None else TensorQuantizer(_checked(descriptor)))

    @classmethod
    def _taken_over(cls, module: nn.Module) -> Self:
        """Return an instance with the parameters, buffers, hooks, options and mode of ``module``: the same objects."""
        if type(module) is not cls.replaced_type():
            expected = cls.replaced_type().__name__
            raise InputError(f"{cls.__name__} replaces exactly {expected}, got {type(module).__name__}")
        quantized = cls.__new__(cls)
        # The registries (parameters, hooks, ...) are copied, so that a later change of one module spares the other.
        state = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
        vars(quantized).update(state)
        return quantized


class InputQuantized(Quantized):
    """A module that quantizes its input; put it before the float class among the bases.

    Args:
        *args: those of the float module.
        quant_desc_input: how to quantize the input; None for the default of the class.
        **kwargs: those of the float module.
    """

    def __init__(self, *args: Any, quant_desc_input: QuantDescriptor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer("_input_quantizer", quant_desc_input or self.default_quant_desc_input)

    @property
    def input_quantizer(self) -> TensorQuantizer | None:
        """The quantizer of the input; None when the graph around the module quantizes it."""
        return self._modules["_input_quantizer"]  # type: ignore[return-value]

    def _quantized_input(self, inputs: Tensor) -> Tensor:
        quantizer = self.input_quantizer
        return inputs if quantizer is None else quantizer(inputs)


class OnlyInputQuantized(InputQuantized):
    """A module whose input is quantized and whose forward takes nothing else, such as a pooling."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the float module makes of the quantized input."""
        outputs: Tensor = super().forward(self._quantized_input(input))
        return outputs

    @classmethod
    def from_float(cls, module: nn.Module, input: QuantDescriptor | None = None) -> Self:
        """Return a quantized module with the parameters, options, hooks and mode of ``module``, which is not modified.

        Args:
            module: an instance of exactly the replaced class.
            input: None for the default of the class.

        Raises:
            InputError: the module is of another class, a subclass included.
        """
        quantized = cls._taken_over(module)
        quantized._add_quantizer("_input_quantizer", input or cls.default_quant_desc_input)
        return quantized.train(module.training)


class WeightQuantized(InputQuantized):
    """A module that quantizes its input and its weight; put it before the float class among the bases.

    Args:
        *args: those of the float module.
        quant_desc_input: how to quantize the input; None for the default of the class.
        quant_desc_weight: how to quantize the weight; None for the default of the class.
        **kwargs: those of the float module.
    """

    weight: Tensor

    def __init__(self, *args: Any, quant_desc_weight: QuantDescriptor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizer("_weight_quantizer", quant_desc_weight or self.default_quant_desc_weight)

    @classmethod
    def from_float(
        cls, module: nn.Module, weight: QuantDescriptor | None = None, input: QuantDescriptor | None = None
    ) -> Self:
        """Return a quantized module that shares the parameters of ``module``, which is not modified.

        Hooks, training mode and further attributes come along. Removing a hook of ``module`` by its handle does not
        remove it here.

        Args:
            module: an instance of exactly the replaced class.
            weight: None for the default of the class.
            input: None for no input quantizer, as in a graph that has activation quantizers of its own.

        Raises:
            InputError: the module is of another class, a subclass included.
        """
        quantized = cls._taken_over(module)
        quantized._add_quantizer("_input_quantizer", input)
        quantized._add_quantizer("_weight_quantizer", weight or cls.default_quant_desc_weight)
        # The quantizers are new: they follow the mode of the module.
        return quantized.train(module.training)

    @property
    def weight_quantizer(self) -> TensorQuantizer:
        """The quantizer of the weight."""
        return self._modules["_weight_quantizer"]  # type: ignore[return-value]

    def quantized_weight(self) -> Tensor:
        """Return the weight as forward uses it: quantized and dequantized."""
        quantized: Tensor = self.weight_quantizer(self.weight)
        return quantized

    def fit_weight(self) -> None:
        """Give the weight quantizer the range of the weight as it is now; a fixed range, or a disabled one, stays."""
        quantizer = self.weight_quantizer
        if quantizer.calibrator is None or not quantizer.is_enabled:
            return
        quantizer.calibrator.reset()
        quantizer.calibrator.collect(self.weight.detach())
        quantizer.load_calib_amax()

    @abstractmethod
    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return (function, options): ``function(x, weight, bias, **options)`` is the float module on ``x``."""


class ManyQuantized(Quantized):
    """A module with quantizers inside its computation; put it before the float class among the bases.

    Args:
        *args: those of the float module.
        quant_desc_input: how to quantize inputs and intermediate tensors; None for the default of the class.
        quant_desc_weight: how to quantize the weights; None for the default of the class.
        **kwargs: those of the float module.
    """

    def __init__(
        self,
        *args: Any,
        quant_desc_input: QuantDescriptor | None = None,
        quant_desc_weight: QuantDescriptor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizers(quant_desc_input, quant_desc_weight)

    @classmethod
    def from_float(
        cls, module: nn.Module, weight: QuantDescriptor | None = None, input: QuantDescriptor | None = None
    ) -> Self:
        """Return a quantized module that shares the parameters of ``module``, which is not modified.

        Args:
            module: an instance of exactly the replaced class.
            weight, input: None for the default of the class.

        Raises:
            InputError: the module is of another class, a subclass included.
        """
        quantized = cls._taken_over(module)
        quantized._add_quantizers(input, weight)
        return quantized.train(module.training)

    def _add_quantizers(self, input: QuantDescriptor | None, weight: QuantDescriptor | None) -> None:
        for name in self._activation_names():
            self._add_quantizer(quantizer_name(name), input or self.default_quant_desc_input)
        for name in self._weight_names():
            self._add_quantizer(quantizer_name(name), weight or self.default_quant_desc_weight)

    @abstractmethod
    def _activation_names(self) -> list[str]:
        """Return the names of the tensors to quantize beside the weights."""

    @abstractmethod
    def _weight_names(self) -> list[str]:
        """Return the weights to quantize, by their name in the state dict."""

    def _quantized(self, name: str, tensor: Tensor) -> Tensor:
        quantized: Tensor = self._modules[quantizer_name(name)](tensor)  # type: ignore[misc]
        return quantized

    def _weight(self, name: str) -> Tensor:
        return self._quantized(name, self.get_parameter(name))


def quantizer_name(tensor_name: str) -> str:
    """Return the name under which the quantizer of a weight or activation is registered."""
    return f"_{tensor_name.replace('.', '_')}_quantizer"


def _checked(descriptor: QuantDescriptor) -> QuantDescriptor:
    if not isinstance(descriptor, QuantDescriptor):
        raise DescriptorError(f"expected a QuantDescriptor, got {type(descriptor).__name__}")
    return descriptor
