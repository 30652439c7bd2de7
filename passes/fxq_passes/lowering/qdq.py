"""The pieces that ``lower_to_qdq`` writes: quantize and dequantize of activations, integers of weights and biases.

Where the range of an input is measured as it runs, a linear layer becomes one operator on integers instead.
"""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional

from fxq import GraphError, Rewriter, TensorQuantizer
from fxq.graph import module_kind
from fxq.nn import QParams, QuantLinear, WeightQuantized
from fxq.quant import DEQUANTIZE, DEQUANTIZE_LOW_BIT, DYNAMIC_LINEAR, QUANTIZE
from fxq_passes.lowering.stored_weights import bits_of, integer_codes, is_linear_weight


@dataclass
class Lowering:
    """Writes nodes and stored tensors through ``rw``; remembers what several calls share."""

    rw: Rewriter
    dtype: torch.dtype  # of the model, for tensors whose own is not known
    stored: dict[tuple[int, int], str] = field(default_factory=dict)  # weight and its quantizer -> path
    biases: dict[str, list[str]] = field(default_factory=dict)  # layer -> the biases that it has
    dynamic: dict[Node, TensorQuantizer] = field(default_factory=dict)  # quantizer nodes that what reads them takes in

    def activation(self, before: Node, source: Node, path: str, quantizer: TensorQuantizer) -> Node:
        """Insert quantize and dequantize of ``source``; scale and zero point are stored at ``path``."""
        found = quantizer.qparams()
        value = source.meta.get("val")
        dtype = value.dtype if isinstance(value, Tensor) else self.dtype
        scale = self.rw.read_tensor(before, f"{path}.scale", found.scale)
        zero = self.rw.read_tensor(before, f"{path}.zero_point", found.zero_point.to(found.dtype))
        args = (source, scale, zero, found.axis, found.lo, found.hi, found.dtype)
        codes = self.rw.insert_call(before, QUANTIZE, args, like=source, value=value)
        return self.rw.insert_call(
            before, DEQUANTIZE, (codes, scale, zero, found.axis, dtype), like=source, value=value
        )

    def weight_value(self, node: Node, path: str, weight: Tensor, found: QParams, dtype: torch.dtype) -> Node:
        """Store the codes of ``weight`` at ``path`` and insert, before ``node``, what makes floats of them."""
        codes = self.rw.read_tensor(node, path, integer_codes(weight, found))
        bits = bits_of(found)
        if bits is not None and (found.block_size is not None or bits in self.rw.target.formats.packed_bits):
            axis = 0 if found.axis is None else found.axis
            step = found.scale if found.scale.dim() else found.scale.repeat(weight.shape[axis])
            scale = self.rw.read_tensor(node, f"{path}_scale", step)
            args: tuple[Any, ...] = (codes, scale, bits, axis, found.block_size, dtype)
            return self.rw.insert_call(node, DEQUANTIZE_LOW_BIT, args, like=node)
        scale = self.rw.read_tensor(node, f"{path}_scale", found.scale)
        zero = self.rw.read_tensor(node, f"{path}_zero_point", found.zero_point.to(found.dtype))
        return self.rw.insert_call(node, DEQUANTIZE, (codes, scale, zero, found.axis, dtype), like=node)

    def stored_codes(self, node: Node, path: str, weight: Tensor, found: QParams) -> tuple[Node, Node]:
        """Store the codes of ``weight`` at ``path``; return the nodes that read them and their step."""
        codes = self.rw.read_tensor(node, path, integer_codes(weight, found))
        return codes, self.rw.read_tensor(node, f"{path}_scale", found.scale)

    def layer(self, node: Node, layer: WeightQuantized) -> None:
        """Replace a call of a quantized layer by a function on a stored integer weight."""
        source: Any = node.args[0] if node.args else node.kwargs["input"]
        own = layer.input_quantizer
        if source in self.dynamic:
            self._dynamic_layer(node, layer, source.all_input_nodes[0])
            return
        if own is not None and is_on(own):
            if own.descriptor.is_dynamic:
                self._dynamic_layer(node, layer, source)
                return
            source = self.activation(node, source, f"{node.target}.input_quantizer", own)
        source = self._padded(node, layer, source)
        function, options = layer.as_function()
        size: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        if size is not None:
            options["output_padding"] = _output_padding(layer, node, size)
        weight, step = self._weight(node, layer)
        bias = self._bias(node, layer, source, step)
        self.rw.call_instead(node, function, (source, weight, bias), options, "layer on a stored integer weight")

    def _padded(self, node: Node, layer: WeightQuantized, source: Node) -> Node:
        """Return ``source``, padded where the layer pads with something else than zeros, which no kernel does itself.

        What it is padded with has codes already, so that quantizing it again changes nothing. But a kernel on integers
        wants its input to come from a dequantize, and what computed ``source`` wants its own quantize.
        """
        options = layer.padding_before()
        if options is None:
            return source
        value = source.meta.get("val")
        if isinstance(value, Tensor):
            value = functional.pad(value, **options)
        padded = self.rw.insert_call(node, functional.pad, (source,), node, options, value)
        codes: Any = source.args[0] if source.target is DEQUANTIZE else None
        if not isinstance(codes, Node) or codes.target is not QUANTIZE:
            return padded
        codes = self.rw.insert_call(node, QUANTIZE, (padded, *codes.args[1:]), node, value=value)
        return self.rw.insert_call(node, DEQUANTIZE, (codes, *source.args[1:]), node, value=value)

    def _dynamic_layer(self, node: Node, layer: WeightQuantized, source: Node) -> None:
        """Replace a call of a linear layer whose input is quantized with the range that it has at run time."""
        quantizer = layer.weight_quantizer
        if not isinstance(layer, QuantLinear) or not is_on(quantizer) or not is_linear_weight(quantizer.qparams()):
            raise GraphError(
                f"{node.target!r} ({type(layer).__name__}): an input range that is measured as it runs goes with a "
                f"linear layer of symmetric int8 weights, per channel or per tensor, and this one has {quantizer}; "
                "switch its input quantizer off too, or leave it in float (a rule with None)"
            )
        path = self._weight_path(node, layer)
        codes, step = self.stored_codes(node, f"{path}.weight", layer.weight.detach(), quantizer.qparams())
        bias = None if layer.bias is None else self.rw.read_tensor(node, f"{node.target}.bias", layer.bias.detach())
        self.rw.call_instead(node, DYNAMIC_LINEAR, (source, codes, step, bias), {}, "layer on integers, one operator")

    def _weight_path(self, node: Node, layer: WeightQuantized) -> str:
        # Modules with one weight tensor store its codes once.
        return self.stored.setdefault((id(layer.weight), id(layer.weight_quantizer)), str(node.target))

    def _weight(self, node: Node, layer: WeightQuantized) -> tuple[Node, Tensor | None]:
        """Return the weight as floats, and the step of its integers, None where it has none."""
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        path = f"{self._weight_path(node, layer)}.weight"
        if not is_on(quantizer):
            return self.rw.read_tensor(node, path, weight), None
        found = quantizer.qparams()
        value = self.weight_value(node, path, weight, found, weight.dtype)
        return value, None if found.dtype.is_floating_point or found.block_size is not None else found.scale

    def _bias(self, node: Node, layer: WeightQuantized, source: Node, weight_step: Tensor | None) -> Node | None:
        if not isinstance(layer.bias, Tensor):
            return None
        bias, path = layer.bias.detach(), str(node.target)
        if (
            not self.rw.target.derives_bias(module_kind(layer))
            or weight_step is None
            or source.target is not DEQUANTIZE
        ):
            return self.rw.read_tensor(node, self._bias_place(path, "float"), bias)
        step = self.rw.tensor(source.args[1]) * weight_step  # (channels,) or ()
        if step.dim() and len(step) < len(bias):  # a grouped transposed convolution: (out / groups,)
            step = step.repeat(len(bias) // len(step))
        codes = torch.round(bias.double() / step.double()).to(torch.int32)  # they fit: bias_room.py
        # Two calls of one layer have two input scales, hence two integer biases.
        place = self._bias_place(path, node.name)
        stored = self.rw.read_tensor(node, place, codes)
        scale = self.rw.read_tensor(node, f"{place}_scale", step)
        zero = self.rw.read_tensor(node, f"{place}_zero_point", torch.zeros_like(step, dtype=torch.int32))
        axis = 0 if step.dim() else None
        return self.rw.insert_call(node, DEQUANTIZE, (stored, scale, zero, axis, bias.dtype), like=node)

    def _bias_place(self, path: str, which: str) -> str:
        """Return where to store a bias of the layer at ``path``: the float one, or the codes for a call."""
        known = self.biases.setdefault(path, [])
        if which not in known:
            known.append(which)
        index = known.index(which)
        return f"{path}.bias_{index}" if index else f"{path}.bias"


def is_on(quantizer: TensorQuantizer | None) -> TypeGuard[TensorQuantizer]:
    """Return whether there is a quantizer that changes its input: the user may have switched it off."""
    return quantizer is not None and quantizer.is_enabled and quantizer.is_quant_enabled


def _output_padding(layer: Any, node: Node, size: Any) -> Any:
    value = node.all_input_nodes[0].meta.get("val")
    if value is None:
        raise GraphError(f"{node.target!r} is called with an output_size: give fxq.prepare() example_inputs")
    size = map_arg(size, lambda producer: producer.meta.get("val"))  # sizes computed from shapes, as traced
    sizes = (layer.stride, layer.padding, layer.kernel_size, layer.weight.dim() - 2, layer.dilation)
    return layer._output_padding(value, list(size), *sizes)
