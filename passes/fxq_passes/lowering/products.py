"""Lower products whose operands are quantized with the ranges they have at run time: one operator on integers each."""

from typing import Any

from torch.fx import Node
from torch.nn import functional

from fxq import GraphError, TensorQuantizer
from fxq.graph import kind, stored_input
from fxq.quant import DYNAMIC_LINEAR, DYNAMIC_MATMUL
from fxq_passes.lowering.qdq import Lowering, is_on
from fxq_passes.lowering.stored_weights import integer_codes, is_linear_weight


def lower_products(lowering: Lowering, quantizers: dict[Node, TensorQuantizer]) -> None:
    """Replace products of dynamic operands, and linear functions of one and a stored weight.

    Fills ``lowering.dynamic``, where linear modules look as well.

    Raises:
        GraphError: a dynamic quantizer has a format that no operator has.
    """
    for node, quantizer in quantizers.items():
        if is_on(quantizer) and quantizer.descriptor.is_dynamic:
            _check_format(node, quantizer)
            lowering.dynamic[node] = quantizer
    for node in lowering.rw.nodes(lambda node: kind(node) == "matmul" or node.target is functional.linear):
        left, right, *rest = [*node.args, *node.kwargs.values()]
        if not isinstance(left, Node) or left not in lowering.dynamic or not isinstance(right, Node):
            continue
        if right in lowering.dynamic and kind(node) == "matmul":
            sources = [*left.all_input_nodes, *right.all_input_nodes]
            lowering.rw.call_instead(node, DYNAMIC_MATMUL, sources, {}, "product of integers, one operator")
        elif right in quantizers and is_on(quantizers[right]):
            _lower_stored(lowering, node, (left, right, *rest), quantizers[right])


def erase_dynamic(lowering: Lowering) -> None:
    """Erase the dynamic quantizers, which the operators that read them have taken in.

    Raises:
        GraphError: something else reads one.
    """
    for node in lowering.dynamic:
        for reader in node.users:
            raise GraphError(
                f"quantizer {node.target!r} measures its range as it runs, and {reader.name!r} reads it: only linear "
                "layers with an integer weight, and products of two such tensors, have a form for that. Give it "
                'another calibrator than "dynamic", or take it out'
            )
        lowering.rw.bypass(node, "taken in by what reads it")


def _lower_stored(lowering: Lowering, node: Node, operands: tuple[Any, ...], quantizer: TensorQuantizer) -> None:
    """Replace a product of a dynamic tensor and a stored matrix; leave one whose matrix has no such form."""
    left, right, *rest = operands
    weight, found = stored_input(right), quantizer.qparams()
    is_linear = node.target is functional.linear
    if weight is None or weight.dim() != 2 or not is_linear_weight(found, channel_axis=0 if is_linear else 1):
        return
    codes = integer_codes(weight.detach(), found)
    place = f"{right.target}.weight" if is_linear else f"{right.target}.transposed"
    stored = lowering.rw.read_tensor(node, place, codes if is_linear else codes.t().contiguous())
    scale = lowering.rw.read_tensor(node, f"{place}_scale", found.scale)
    bias = rest[0] if rest else None
    args = (left.all_input_nodes[0], stored, scale, bias)
    lowering.rw.call_instead(node, DYNAMIC_LINEAR, args, {}, "product of integers, one operator")


def _check_format(node: Node, quantizer: TensorQuantizer) -> None:
    descriptor = quantizer.descriptor
    is_uint8 = descriptor.num_bits == 8 and descriptor.unsigned and not descriptor.symmetric
    if not is_uint8 or descriptor.axis is not None or descriptor.scale_amax is not None:
        raise GraphError(
            f"quantizer {node.target!r} measures its range as it runs, which ONNX does for unsigned affine 8-bit codes "
            f"per tensor only, not {descriptor}: use QuantDescriptor(unsigned=True, symmetric=False, "
            'calibrator="dynamic")'
        )
