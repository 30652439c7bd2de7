"""Quantizers become explicit quantize and dequantize nodes, weights stored integers behind a dequantize."""

from dataclasses import dataclass

import torch
from torch.fx import Node

from fxq import GraphError, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_quantizer, module_of
from fxq.nn import InputQuantized, Quantized, WeightQuantized
from fxq_passes.qdq_lowering import Lowering, is_on


@register_pass("lower_to_qdq")
@dataclass(frozen=True)
class LowerToQdq(Pass):
    """Write quantizers as quantize and dequantize nodes, and weights as integers with a dequantize.

    Rounding may differ by one step from the fake-quantized graph where a value lies between two codes:
    ``x * (hi / amax)`` before, ``x / (amax / hi)``, as in ONNX, from here on.
    """

    stage = Stage.LOWERED
    preserves_numbers = False

    def run(self, rw: Rewriter) -> None:
        """Lower activations first: an integer bias needs the step of its layer's input."""
        lowering = Lowering(rw, _dtype_of(rw))
        quantizers = [(node, rw.module(node)) for node in rw.nodes(is_quantizer)]
        layers = [(node, rw.module(node)) for node in rw.nodes(_calls_quantized)]
        weighted = [(node, layer) for node, layer in layers if isinstance(layer, WeightQuantized)]
        for node, _ in quantizers + weighted:
            rw.empty_module(str(node.target))  # its path becomes the place of its tensors
        for node, quantizer in quantizers:
            _lower_quantizer(lowering, node, quantizer)
        for node, layer in layers:
            if isinstance(layer, WeightQuantized):
                lowering.layer(node, layer)
            else:
                _lower_input(lowering, node, layer)


def _dtype_of(rw: Rewriter) -> torch.dtype:
    return next((tensor.dtype for tensor in rw.gm.parameters() if tensor.is_floating_point()), torch.float32)


def _calls_quantized(node: Node) -> bool:
    return node.op == "call_module" and isinstance(module_of(node), Quantized)


def _lower_quantizer(lowering: Lowering, node: Node, quantizer: TensorQuantizer) -> None:
    if is_on(quantizer):
        value = lowering.activation(node, node.all_input_nodes[0], str(node.target), quantizer)
        lowering.rw.bypass(node, "explicit quantize and dequantize", source=value)
    else:
        lowering.rw.bypass(node, "disabled")


def _lower_input(lowering: Lowering, node: Node, layer: Quantized) -> None:
    """Lower a layer that a user placed by hand and that has no weight, such as QuantMaxPool2d."""
    if not isinstance(layer, InputQuantized):
        raise GraphError(
            f"{node.target!r} ({type(layer).__name__}) quantizes inside of its computation, which has no QDQ form; "
            "use the float module for a model to export"
        )
    quantizer = layer.input_quantizer
    if quantizer is None:
        return
    source = node.all_input_nodes[0]
    if is_on(quantizer):
        value = lowering.activation(node, source, f"{node.target}_input_quantizer", quantizer)
        node.replace_input_with(source, value)
    quantizer.disable()
    lowering.rw.edit(node, "explicit quantize and dequantize of its input")
