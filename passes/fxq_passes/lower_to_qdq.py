"""Quantizers become explicit quantize and dequantize nodes, weights stored integers behind a dequantize."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fxq import (
    LSB,
    FxqError,
    GraphError,
    Pass,
    PassError,
    Rewriter,
    Stage,
    TensorQuantizer,
    find_lowering,
    register_pass,
)
from fxq.graph import is_quantizer, module_of, stored_input
from fxq.nn import InputQuantized, ManyQuantized, Quantized, WeightQuantized
from fxq_passes.lowering.bias_room import make_room
from fxq_passes.lowering.products import erase_dynamic, lower_products
from fxq_passes.lowering.qdq import Lowering, is_on
from fxq_passes.lowering.recurrent import lower_float


@register_pass("lower_to_qdq")
@dataclass(frozen=True)
class LowerToQdq(Pass):
    """Write quantizers as quantize and dequantize nodes, and weights as integers with a dequantize.

    A linear layer or product whose input ranges are measured as it runs becomes one operator on integers. Rounding may
    differ by one step from the fake-quantized graph where a value lies between two codes: ``x * (hi / amax)`` before,
    ``x / (amax / hi)``, as in ONNX, from here on.
    """

    stage = Stage.LOWERED
    tolerance = LSB(1)

    def run(self, rw: Rewriter) -> None:
        """Lower activations first: an integer bias needs the step of its layer's input."""
        lowering = Lowering(rw, _dtype_of(rw))
        quantizers = {node: rw.module(node) for node in rw.nodes(is_quantizer)}
        layers = [(node, rw.module(node), find_lowering(rw.module(node))) for node in rw.nodes(_calls_quantized)]
        make_room(rw, [(node, layer) for node, layer, _ in layers if isinstance(layer, WeightQuantized)])
        for node in [*quantizers, *(node for node, layer, _ in layers if _has_weights(layer))]:
            rw.empty_module(str(node.target))  # its path becomes the place of its tensors
        lower_products(lowering, quantizers)
        for node, quantizer in quantizers.items():
            _lower_quantizer(lowering, node, quantizer)
        for node, layer, found in layers:
            if found is not None:
                _lower_module(lowering, found, node, layer)
            elif isinstance(layer, WeightQuantized):
                lowering.layer(node, layer)
            else:
                _lower_input(lowering, node, layer)
        lower_float(lowering)
        erase_dynamic(lowering)


def _dtype_of(rw: Rewriter) -> torch.dtype:
    return next((tensor.dtype for tensor in rw.gm.parameters() if tensor.is_floating_point()), torch.float32)


def _calls_quantized(node: Node) -> bool:
    return node.op == "call_module" and isinstance(module_of(node), Quantized)


def _has_weights(layer: Quantized) -> bool:
    return isinstance(layer, WeightQuantized | ManyQuantized)


def _lower_module(lowering: Lowering, found: Any, node: Node, layer: Quantized) -> None:
    try:
        reason = found.why_not(node, layer)
        if reason is not None:
            raise GraphError(f"{node.target!r} ({type(layer).__name__}): {reason}")
        found.lower(lowering, node, layer)
    except (FxqError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of a plugin's lowering, which may fail in any way, sys.exit too
        raise PassError(
            f"{type(found).__name__} failed at {node.target!r} ({type(layer).__name__}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _lower_quantizer(lowering: Lowering, node: Node, quantizer: TensorQuantizer) -> None:
    if node in lowering.dynamic:
        return  # the layers that read it take it in
    if not is_on(quantizer):
        lowering.rw.bypass(node, "disabled")
        return
    if not node.users:
        lowering.rw.bypass(node, "taken in by what reads it")
        return
    source, path = node.all_input_nodes[0], str(node.target)
    stored = stored_input(node)
    if stored is None:
        value = lowering.activation(node, source, path, quantizer)
    else:
        value = lowering.weight_value(node, f"{path}.weight", stored.detach(), quantizer.qparams(), stored.dtype)
    lowering.rw.bypass(node, "explicit quantize and dequantize" if stored is None else "stored integers", source=value)


def _lower_input(lowering: Lowering, node: Node, layer: Quantized) -> None:
    """Lower a layer without weight, such as QuantMaxPool2d."""
    if not isinstance(layer, InputQuantized):
        raise GraphError(
            f"{node.target!r} ({type(layer).__name__}) quantizes inside of its computation, which has no QDQ form; "
            "use the float module for a model to export"
        )
    quantizer = layer.input_quantizer
    if quantizer is None:
        return
    source, why = node.all_input_nodes[0], "explicit quantize and dequantize of its input"
    if is_on(quantizer):
        if quantizer.descriptor.is_dynamic:
            raise GraphError(
                f"{node.target!r} ({type(layer).__name__}) measures the range of its input as it runs, for which it "
                'has no integer form: give it another calibrator than "dynamic"'
            )
        value = lowering.activation(node, source, f"{node.target}_input_quantizer", quantizer)
        lowering.rw.replace_input(node, source, value, why)
    quantizer.disable()
