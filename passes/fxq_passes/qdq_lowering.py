"""The pieces that ``lower_to_qdq`` writes: quantize and dequantize of activations, integers of weights and biases."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fxq import GraphError, Rewriter, TensorQuantizer
from fxq.nn import WeightQuantized
from fxq.quant import DEQUANTIZE, QUANTIZE

_INT32 = torch.iinfo(torch.int32)


@dataclass
class Lowering:
    """Writes nodes and stored tensors through ``rw``; remembers what several calls share."""

    rw: Rewriter
    dtype: torch.dtype  # of the model, for tensors whose own is not known
    stored: dict[tuple[int, int], str] = field(default_factory=dict)  # weight and its quantizer -> path
    biases: dict[str, list[str]] = field(default_factory=dict)  # layer -> calls that have an integer bias

    def activation(self, before: Node, source: Node, path: str, quantizer: TensorQuantizer) -> Node:
        """Insert quantize and dequantize of ``source``; scale and zero point are stored at ``path``."""
        found = quantizer.qparams()
        value = source.meta.get("val")
        dtype = value.dtype if isinstance(value, Tensor) else self.dtype
        scale = self.rw.read_tensor(before, f"{path}.scale", found.step)
        zero = self.rw.read_tensor(before, f"{path}.zero_point", found.zero_point.to(found.dtype))
        args = (source, scale, zero, found.axis, found.lo, found.hi, found.dtype)
        codes = self.rw.insert_call(before, QUANTIZE, args, like=source)
        return self.rw.insert_call(before, DEQUANTIZE, (codes, scale, zero, found.axis, dtype), like=source)

    def layer(self, node: Node, layer: WeightQuantized) -> None:
        """Replace a call of a quantized layer by a function on a stored integer weight."""
        source: Any = node.args[0] if node.args else node.kwargs["input"]
        own = layer.input_quantizer
        if own is not None and is_on(own):
            source = self.activation(node, source, f"{node.target}.input_quantizer", own)
        function, options = layer.as_function()
        size: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        if size is not None:
            options["output_padding"] = _output_padding(layer, node, size)
        weight, step = self._weight(node, layer)
        bias = self._bias(node, layer, source, step)
        self.rw.call_instead(node, function, (source, weight, bias), options, "layer on a stored integer weight")

    def _weight(self, node: Node, layer: WeightQuantized) -> tuple[Node, Tensor | None]:
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        # Modules with one weight tensor store its codes once.
        path = self.stored.setdefault((id(layer.weight), id(quantizer)), str(node.target))
        if not is_on(quantizer):
            return self.rw.read_tensor(node, f"{path}.weight", weight), None
        found = quantizer.qparams()
        zero_point = found.zero_point.to(found.dtype)
        codes = QUANTIZE(weight, found.step, zero_point, found.axis, found.lo, found.hi, found.dtype)
        stored = self.rw.read_tensor(node, f"{path}.weight", codes)
        scale = self.rw.read_tensor(node, f"{path}.weight_scale", found.step)
        zero = self.rw.read_tensor(node, f"{path}.weight_zero_point", zero_point)
        value = self.rw.insert_call(node, DEQUANTIZE, (stored, scale, zero, found.axis, weight.dtype), like=node)
        return value, found.step

    def _bias(self, node: Node, layer: WeightQuantized, source: Node, weight_step: Tensor | None) -> Node | None:
        if not isinstance(layer.bias, Tensor):
            return None
        bias, path = layer.bias.detach(), str(node.target)
        if not self.rw.target.integer_bias or weight_step is None or source.target is not DEQUANTIZE:
            return self.rw.read_tensor(node, f"{path}.bias", bias)
        step = self.rw.tensor(source.args[1]) * weight_step  # (channels,) or ()
        if step.dim() and len(step) < len(bias):  # a grouped transposed convolution: (out / groups,)
            step = step.repeat(len(bias) // len(step))
        exact = torch.round(bias.double() / step.double())
        if bool((exact.abs() > _INT32.max).any()):
            # A channel of next to no weight has a tiny step; int32 would clip its bias.
            self.rw.skip(node, "its bias stays float: it does not fit 32 bits in steps of input step x weight step")
            return self.rw.read_tensor(node, f"{path}.bias", bias)
        codes = exact.to(torch.int32)
        # Two calls of one layer have two input scales, hence two integer biases.
        calls = self.biases.setdefault(path, [])
        calls.append(node.name)
        place = f"{path}.bias" if len(calls) == 1 else f"{path}.bias_{len(calls) - 1}"
        stored = self.rw.read_tensor(node, place, codes)
        scale = self.rw.read_tensor(node, f"{place}_scale", step)
        zero = self.rw.read_tensor(node, f"{place}_zero_point", torch.zeros_like(step, dtype=torch.int32))
        axis = 0 if step.dim() else None
        return self.rw.insert_call(node, DEQUANTIZE, (stored, scale, zero, axis, bias.dtype), like=node)


def is_on(quantizer: TensorQuantizer) -> bool:
    """Return whether the quantizer changes its input: the user may have switched it off."""
    return quantizer.is_enabled and quantizer.is_quant_enabled


def _output_padding(layer: Any, node: Node, size: Any) -> Any:
    value = node.all_input_nodes[0].meta.get("val")
    if value is None:
        raise GraphError(f"{node.target!r} is called with an output_size: give fxq.prepare() example_inputs")
    size = map_arg(size, lambda producer: producer.meta.get("val"))  # sizes computed from shapes, as traced
    sizes = (layer.stride, layer.padding, layer.kernel_size, layer.weight.dim() - 2, layer.dilation)
    return layer._output_padding(value, list(size), *sizes)
