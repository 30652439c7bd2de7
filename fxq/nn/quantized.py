"""What every quantized module shares: its quantizers, their default descriptors, and taking over a float module.

A quantized module is a subclass of the module it replaces, takes all its arguments, and has its state dict plus the
ranges ``_input_quantizer._amax`` and ``_weight_quantizer._amax``, the names of pytorch-quantization.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from fxq.errors import DescriptorError, InputError
from fxq.nn.batchnorm import BatchNormFolded
from fxq.nn.computed import computed_tensors, computing_type
from fxq.nn.range_state import weight_range_errors
from fxq.nn.tensor_quantizer import TensorQuantizer
from fxq.quant.descriptor import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW, QUANT_DESC_8BIT_PER_TENSOR, QuantDescriptor


class Weight(NamedTuple):
    """A weight of a quantized module: its name in the state dict, the float tensor, and what quantizes it."""

    name: str
    tensor: Tensor
    quantizer: TensorQuantizer


class Quantized(nn.Module):
    """Base of the quantized modules: default descriptors, the list of quantizers, and taking over a float module.

    Attributes:
        quantizer_type: the class of the quantizers that a module makes for itself.
        products: of the activation slots, those that are operands of a product of two activations.
    """

    default_quant_desc_input: ClassVar[QuantDescriptor | None] = QUANT_DESC_8BIT_PER_TENSOR
    default_quant_desc_weight: ClassVar[QuantDescriptor] = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW
    quantizer_type: ClassVar[type[TensorQuantizer]] = TensorQuantizer
    products: ClassVar[frozenset[str]] = frozenset()

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
        """Return the class that this one replaces: its nearest base that is not quantized."""
        return next(base for base in cls.__mro__ if issubclass(base, nn.Module) and not issubclass(base, Quantized))

    @classmethod
    def from_float(
        cls, module: nn.Module, weight: QuantDescriptor | None = None, input: QuantDescriptor | None = None
    ) -> Self:
        """Return a quantized module that shares the parameters of ``module``, which is not modified.

        Hooks, training mode and further attributes come along. Removing a hook of ``module`` by its handle does not
        remove it here.

        Args:
            module: an instance of exactly the replaced class (see :meth:`takes`).
            weight: how to quantize each weight; None for the default of the class.
            input: how to quantize the input and the tensors inside; None for no such quantizers, as in a graph that
                has activation quantizers of its own, or to quantize weights only. A class without weights takes its
                default then.

        Raises:
            InputError: the module is of another class, a subclass included, or computes its weights.
            DescriptorError: a weight descriptor for a class without weights.
        """
        weights = dict.fromkeys(cls.weight_slots(module), weight or cls.default_quant_desc_weight)
        return cls.from_descriptors(module, {**weights, **dict.fromkeys(cls.activation_slots(module), input)})

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Return whether this class can replace ``module``: one of exactly the replaced class, with stored weights."""
        return type(module) is cls.replaced_type() and not any(map(computed_tensors, module.modules()))

    @classmethod
    def from_descriptors(cls, module: nn.Module, descriptors: Mapping[str, QuantDescriptor | None]) -> Self:
        """Return a quantized module as :meth:`from_float` does, with a descriptor for each of its tensors.

        Args:
            module: an instance of exactly the replaced class.
            descriptors: by slot (see :meth:`weight_slots`, :meth:`activation_slots`); a slot without one gets no
                quantizer.

        Raises:
            InputError: the module is of another class, a subclass included.
            DescriptorError: a slot that this class does not have.
        """
        slots = [*cls.activation_slots(module), *cls.weight_slots(module)]
        unknown = sorted(set(descriptors) - set(slots))
        if unknown:
            raise DescriptorError(f"{cls.__name__} has no tensor {unknown[0]!r} to quantize; it has {', '.join(slots)}")
        quantized = cls._taken_over(module)
        quantized._add_quantizers(descriptors)
        # The quantizers are new: they follow the mode of the module.
        return quantized.train(module.training)

    @classmethod
    def weight_slots(cls, module: nn.Module) -> list[str]:
        """Return the stored tensors that are quantized, by their name in the state dict.

        Args:
            module: of this class, or of the class that it replaces; its options decide.
        """
        return []

    @classmethod
    def activation_slots(cls, module: nn.Module) -> list[str]:
        """Return the tensors that are quantized and are not stored, by name; ``module`` as in :meth:`weight_slots`."""
        return []

    def quantizer_of(self, slot: str) -> TensorQuantizer | None:
        """Return what quantizes a tensor of :meth:`weight_slots` or :meth:`activation_slots`, None if nothing does."""
        return self._modules.get(quantizer_name(slot))  # type: ignore[return-value]

    def weights(self) -> Iterator[Weight]:
        """Yield the weights that have a quantizer."""
        yield from ()

    def activations(self) -> Iterator[tuple[str, TensorQuantizer]]:
        """Yield name and quantizer of each tensor that is quantized inside and is not a weight."""
        weights = {id(quantizer) for _, _, quantizer in self.weights()}
        for name, module in self._modules.items():
            if isinstance(module, TensorQuantizer) and id(module) not in weights:
                yield name, module

    def _load_from_state_dict(  # noqa: PLR0913 - the signature of torch.nn.Module
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # torch overlooks what lies below a module that is None.
        absent = tuple(f"{prefix}{name}." for name, module in self._modules.items() if module is None)
        unexpected_keys.extend(key for key in state_dict if strict and key.startswith(absent))
        for name, weight, quantizer in self.weights():
            key = f"{prefix}{quantizer_name(name)}."
            error_msgs.extend(weight_range_errors(state_dict, key, weight, quantizer.descriptor))

    def _add_quantizers(self, descriptors: Mapping[str, QuantDescriptor | None]) -> None:
        """Make a quantizer for each slot that has a descriptor."""
        for slot in [*self.activation_slots(self), *self.weight_slots(self)]:
            self._add_quantizer(quantizer_name(slot), descriptors.get(slot))

    def _add_quantizer(self, name: str, descriptor: QuantDescriptor | None) -> None:
        self.add_module(name, None if descriptor is None else self.quantizer_type(_checked(descriptor)))

    def _quantized(self, slot: str, tensor: Tensor) -> Tensor:
        """Return a tensor as its quantizer leaves it, as it is where none has the slot."""
        quantizer = self.quantizer_of(slot)
        quantized: Tensor = tensor if quantizer is None else quantizer(tensor)
        return quantized

    @classmethod
    def _taken_over(cls, module: nn.Module) -> Self:
        """Return an instance with the parameters, buffers, hooks, options and mode of ``module``: the same objects."""
        if not cls.takes(module):
            expected = cls.replaced_type().__name__
            names = [
                f"{path}.{name}".lstrip(".") for path, part in module.named_modules() for name in computed_tensors(part)
            ]
            hint = f", which computes {', '.join(names)}" if names else ""
            raise InputError(f"{cls.__name__} replaces exactly {expected}, got {type(module).__name__}{hint}")
        computed = computed_tensors(module)
        kind: type[Self] = computing_type(cls, computed) if computed else cls
        if isinstance(module, BatchNormFolded):
            kind = BatchNormFolded.over(cls)
        quantized = kind.__new__(kind)
        # The registries (parameters, hooks, ...) are copied, so that a later change of one module spares the other.
        state = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
        vars(quantized).update({name: value for name, value in state.items() if name not in computed})
        return quantized


def quantizer_name(tensor_name: str) -> str:
    """Return the name under which the quantizer of a weight or activation is registered."""
    return f"_{tensor_name.replace('.', '_')}_quantizer"


def _checked(descriptor: QuantDescriptor) -> QuantDescriptor:
    if not isinstance(descriptor, QuantDescriptor):
        raise DescriptorError(f"expected a QuantDescriptor, got {type(descriptor).__name__}")
    return descriptor
