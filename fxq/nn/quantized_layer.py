"""Quantizers of a layer's input and weight, and of the tensors inside: what most quantized modules are made of."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any, Self

from torch import Tensor, nn

from fxq.errors import DescriptorError
from fxq.module_tree import all_modules
from fxq.nn.computed import at_rest, plain_type
from fxq.nn.quantized import Quantized, Weight
from fxq.nn.tensor_quantizer import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor


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

    @classmethod
    def activation_slots(cls, module: nn.Module) -> list[str]:
        """Return the input."""
        return ["input"]

    @property
    def input_quantizer(self) -> TensorQuantizer | None:
        """The quantizer of the input; None when the graph around the module quantizes it."""
        return self._modules["_input_quantizer"]  # type: ignore[return-value]


class OnlyInputQuantized(InputQuantized):
    """A module whose input is quantized and whose forward takes nothing else, such as a pooling."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the float module makes of the quantized input."""
        outputs: Tensor = super().forward(self._quantized("input", input))
        return outputs

    @classmethod
    def from_float(
        cls, module: nn.Module, weight: QuantDescriptor | None = None, input: QuantDescriptor | None = None
    ) -> Self:
        """Return a quantized module in the mode of ``module``; the input gets the default of the class for None."""
        if weight is not None:
            raise DescriptorError(f"{cls.__name__} has no weight to quantize: give input= only")
        return super().from_float(module, input=input or cls.default_quant_desc_input)


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

    @property
    def weight_quantizer(self) -> TensorQuantizer:
        """The quantizer of the weight."""
        return self._modules["_weight_quantizer"]  # type: ignore[return-value]

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Return whether ``module`` is of the replaced class; a weight that it computes is computed here too."""
        return plain_type(module) is cls.replaced_type()

    @classmethod
    def weight_slots(cls, module: nn.Module) -> list[str]:
        """Return the weight."""
        return ["weight"]

    def quantized_weight(self) -> Tensor:
        """Return the weight as forward uses it: quantized and dequantized."""
        quantized: Tensor = self.weight_quantizer(self.weight)
        return quantized

    def weights(self) -> Iterator[Weight]:
        """Yield the weight."""
        yield Weight("weight", at_rest(self, "weight"), self.weight_quantizer)

    @abstractmethod
    def as_function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """Return (function, options): ``function(x, weight, bias, **options)`` is the float module on padded ``x``."""

    def padding_before(self) -> dict[str, Any] | None:
        """Return the options of torch.nn.functional.pad before the function, None where nothing is padded there."""
        return None


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
        activations, weights = self.activation_slots(self), self.weight_slots(self)
        self._add_quantizers(
            {
                **dict.fromkeys(activations, quant_desc_input or self.default_quant_desc_input),
                **dict.fromkeys(weights, quant_desc_weight or self.default_quant_desc_weight),
            }
        )

    def weights(self) -> Iterator[Weight]:
        """Yield the weights that have a quantizer, in the order in which the computation meets them."""
        for slot in self.weight_slots(self):
            quantizer = self.quantizer_of(slot)
            if quantizer is not None:
                yield Weight(slot, self.get_parameter(slot), quantizer)

    def _weight(self, name: str) -> Tensor:
        # Not get_parameter: while tracing, what stands for a parameter is none.
        return self._quantized(name, attrgetter(name)(self))


@contextmanager
def weights_quantized_once(module: nn.Module) -> Iterator[None]:
    """Let the layers in ``module`` quantize their weights once for many calls; nothing may change them meanwhile."""
    held = [one for one in all_modules(module) if isinstance(one, WeightQuantized)]
    try:
        for layer in held:
            layer.__dict__["quantized_weight"] = cache(layer.quantized_weight)
        yield
    finally:
        for layer in held:
            layer.__dict__.pop("quantized_weight", None)
