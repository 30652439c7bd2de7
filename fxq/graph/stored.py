"""Weights: the stored tensors that quantizers read, inside of quantized modules and in the graph itself.

They are known without data, so no batch is needed to fit their ranges.
"""

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxq.errors import CalibrationError
from fxq.graph.kinds import module_of
from fxq.graph.match import is_quantizer
from fxq.graph.memory import overwriting
from fxq.graph.modules import find_module, graphs_in
from fxq.module_tree import all_modules, named_modules
from fxq.nn import Quantized, TensorQuantizer


def weight_quantizers(model: nn.Module) -> Iterator[tuple[str, Tensor, TensorQuantizer]]:
    """Yield, for each weight that is quantized: the path of its module or quantizer, the weight, the quantizer."""
    for path, module in named_modules(model):
        if isinstance(module, Quantized):
            for _name, tensor, quantizer in module.weights():
                yield path, tensor, quantizer
    for path, gm in graphs_in(model):
        for name, tensor, quantizer in _in_graph(gm):
            yield f"{path}.{name}".lstrip("."), tensor, quantizer


def fit_weights(model: nn.Module, only_missing: bool = False) -> None:
    """Give the weight quantizers the ranges of the weights as they are now; a fixed range, or a disabled one, stays.

    Args:
        model: any with quantized modules.
        only_missing: leave the ranges that there are and that do not track.

    Raises:
        CalibrationError: a weight holds NaN or infinity.
    """
    found = [module for module in all_modules(model) if isinstance(module, TensorQuantizer)]
    if only_missing and all(one.has_range and not one.is_tracking for one in found):
        return
    for path, weight, quantizer in weight_quantizers(model):
        if not (only_missing and quantizer.has_range and not quantizer.is_tracking):
            fit_quantizer(path, weight, quantizer)


def fit_quantizer(path: str, weight: Tensor, quantizer: TensorQuantizer) -> None:
    """Give one weight quantizer the range of its weight; a fixed range, or a disabled one, stays.

    Raises:
        CalibrationError: the weight holds NaN or infinity.
    """
    calibrator = quantizer.calibrator
    if calibrator is None or not quantizer.is_enabled:
        return
    try:
        calibrator.reset()
        calibrator.observe(weight.detach())
        quantizer.load_calib_amax()
    except CalibrationError as error:
        raise CalibrationError(
            f"the weight of {path!r} holds NaN or infinity: repair the checkpoint, or leave the module in float "
            "(a rule with None)"
        ) from error


def stored_tensor(node: Any) -> Tensor:
    """Return the parameter or buffer that a get_attr node reads."""
    path, _, name = str(node.target).rpartition(".")
    owner = find_module(node.graph.owning_module, path)
    if owner is not None and name in owner._buffers:  # as most are: nn.Module's getattr takes longer to find them
        return owner._buffers[name]  # type: ignore[return-value]
    found: Tensor = operator.attrgetter(str(node.target))(node.graph.owning_module)
    return found


def stored_input(node: Node) -> Tensor | None:
    """Return the parameter or buffer that a quantizer node reads, None where it reads something computed."""
    source = node.all_input_nodes[0]
    if source.op != "get_attr" or overwriting(source) is not None:
        return None
    return stored_tensor(source)


def _in_graph(gm: GraphModule) -> Iterator[tuple[str, Tensor, TensorQuantizer]]:
    calls: dict[nn.Module, list[Node]] = {}
    for node in gm.graph.nodes:
        if is_quantizer(node):
            calls.setdefault(module_of(node), []).append(node)
    for quantizer, nodes in calls.items():
        stored = {id(tensor): tensor for tensor in map(stored_input, nodes)}
        # One that other tensors share has their range too, which takes data to know.
        for tensor in stored.values() if len(stored) == 1 else ():
            if tensor is not None and isinstance(quantizer, TensorQuantizer):
                yield str(nodes[0].target), tensor, quantizer
