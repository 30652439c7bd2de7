"""What passes ask about a node's neighbours, and which descriptors it gets."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from fxq import QuantDescriptor, Rewriter, Target, TargetError, TensorQuantizer
from fxq.graph import (
    ACTIVATIONS,
    MOVES_DATA,
    Edge,
    ancestors,
    is_constant,
    is_quantized,
    is_quantizer,
    kind,
    output_edges,
    planned_input,
    produces_values,
    tensor_edges,
)
from fxq.nn import Quantized

ELEMENTWISE = frozenset({"add", "sub", "mul", "div"})
# What makes values out of others: where a target has no rule for it, a float kernel does.
_COMPUTES = frozenset({"embedding", "sub", "div", "log_softmax", "lstm", "gru", "rnn"})
# The same of what has no kind; others without kind may move or copy values, which codes bear as well.
_FUNCTIONS = frozenset({
    "abs", "atan2", "cos", "cumsum", "einsum", "erf", "exp", "expm1", "glu", "log", "log10", "log1p", "log2",
    "logsumexp", "norm", "pow", "prod", "reciprocal", "rsqrt", "sin", "softplus", "sqrt", "square", "std", "sum", "tan",
    "var", "view_as_real",
})  # fmt: skip
_NEVER_NEGATIVE = frozenset({"softmax", "sigmoid", "hardsigmoid", "relu", "relu6"})


def activation_descriptor(
    rw: Rewriter, node: Node, slot: str = "inputs", may_be_negative: bool = False
) -> QuantDescriptor:
    """Return the descriptor of what ``node`` reads, or makes (``slot`` "output"); no rule leaves it in float.

    ``may_be_negative``: it is a tensor that may, for which the target can have another descriptor.

    Raises:
        TargetError: the target cannot run it.
    """
    config = rw.config(node, slot, may_be_negative)
    assert config is not None
    assert config.activation is not None
    rw.target.check_activation(config.activation, _where(rw, node))
    return config.activation


def is_never_negative(node: Node) -> bool:
    """Return whether ``node`` shows that it makes no negative values."""
    while kind(node) in MOVES_DATA:
        node = node.all_input_nodes[0]
    return kind(node) in _NEVER_NEGATIVE


def output_descriptor(rw: Rewriter, node: Node, last: Node) -> QuantDescriptor:
    """Return the descriptor of the output of ``node``, which is quantized behind ``last``; errors as above."""
    descriptor, fixed = activation_descriptor(rw, node, "output"), rw.target.fixed(kind(last))
    return descriptor if fixed is None else fixed.applied(descriptor)


def weight_descriptor(rw: Rewriter, node: Node, channel_axis: int) -> QuantDescriptor:
    """Return the descriptor of the weight of ``node``, whose output channels are dimension ``channel_axis``.

    Blocks that the recipe has for all weights are left out where the kind of ``node`` has none.

    Raises:
        TargetError: the target cannot run it.
    """
    config = rw.config(node)
    assert config is not None
    assert config.weight is not None
    rule, descriptor = rw.settings.rule_for(node), config.weight
    if (rule is None or rule.config is None or rule.config.weight is None) and kind(
        node
    ) not in rw.target.formats.block_kinds:
        descriptor = descriptor.replace(block_size=None)  # what holds for all weights holds as far as they can have it
    rw.target.check_weight(descriptor, _where(rw, node), kind(node))
    reads = config.activation if rw.target.has_integer_form(kind(node)) else None
    if reads is not None and reads.is_float8 != descriptor.is_float8:
        raise TargetError(
            f"{_where(rw, node)}: no kernel multiplies {reads} by {descriptor}; give activation and weight one format"
        )
    return descriptor if descriptor.axis is None else descriptor.replace(axis=channel_axis)


def check_activation(rw: Rewriter, node: Node) -> None:
    """Raise a TargetError if ``node`` has an activation descriptor that the target cannot run, used or not."""
    config = rw.config(node)
    if config is not None and config.activation is not None:
        rw.target.check_activation(config.activation, _where(rw, node))


def check_placed_by_hand(rw: Rewriter, node: Node) -> None:
    """Raise a TargetError if the module of ``node`` quantizes an activation per channel.

    Fewer bits are no reason: they are clipped in front of 8. What no input of the model reaches is a weight.
    """
    module = rw.module(node)
    quantizer = module._modules.get("_input_quantizer") if isinstance(module, Quantized) else module
    if not isinstance(quantizer, TensorQuantizer) or not quantizer.is_enabled:
        return
    # What has no axis is right anyway, and need not be followed back through the whole model.
    is_activation = quantizer.descriptor.axis is not None and any(
        found.op == "placeholder" for layer in ancestors(node) for found in layer
    )
    if is_activation:
        rw.target.check_activation_axis(quantizer.descriptor, f"{str(node.target)!r} (quantized by hand)")


def takes_quantized_input(rw: Rewriter, node: Node, found: str) -> bool:
    """Return whether the target quantizes inputs of kind ``found``, of itself or because a rule asks for ``node``."""
    return rw.target.quantizes_inputs(found) or (
        rw.target.quantizes_inputs(found, "on_request") and rw.settings.is_requested(node)
    )


def is_stored_product(rw: Rewriter, node: Node) -> bool:
    """Return whether ``node`` multiplies by a stored matrix that the target takes for a weight, as a linear layer."""
    if kind(node) != "matmul" or not rw.target.stores_integers("matmul") or len(node.args) != 2:
        return False
    left, right = node.args
    if not isinstance(right, Node) or right.op != "get_attr" or not isinstance(left, Node) or is_constant(left):
        return False
    matrix: Tensor = rw.tensor(right)
    return matrix.dim() == 2 and matrix.is_floating_point()


def is_quantized_by_hand(rw: Rewriter, node: Node) -> bool:
    """Return whether ``node`` is a quantizer, or moves the values of one to other places."""
    while "output" in rw.target.same(kind(node)) and len(tensor_edges(node)) == 1:
        node = tensor_edges(node)[0].producer
    return is_quantizer(node)


def kept_in_float(rw: Rewriter) -> dict[Node, str]:
    """Return the elementwise operations and concatenations that stay in float for what reads them, with reasons."""
    found: dict[Node, str] = {}
    for node in reversed(rw.nodes(lambda node: kind(node) in ELEMENTWISE | {"cat"})):
        for reader in node.users:
            if kind(reader) in rw.target.float_readers:
                found[node] = (
                    f"{reader.name!r} ({kind(reader)}) reads it in float: so does the stream that it is part of"
                )
            elif reader in found:
                found[node] = found[reader]
        if kind(node) == "cat" and node not in found and not _may_be_read_in_integers(rw, node, found):
            found[node] = "nothing that reads it computes in integers, and in float its members keep their own ranges"
    return found | _of_floats(rw)


def _of_floats(rw: Rewriter) -> dict[Node, str]:
    """Return the sums and products of what float kernels give, whatever comes behind them, and of stored tensors.

    In integers each operand would be rounded first, and no channel of an activation could have a factor of its own. Of
    two activations a product stays as it is planned: codes may be what else reads them.
    """
    found, with_numbers = dict[Node, str](), set[Node]()

    def gives_floats(node: Node) -> bool:
        if kind(node) in ELEMENTWISE and len(tensor_edges(node)) == 1:
            return node in with_numbers
        return node in found or _gives_floats(rw.target, node)

    for node in rw.nodes(lambda node: kind(node) in ELEMENTWISE and not rw.settings.is_requested(node)):
        operands = [edge.producer for edge in tensor_edges(node)]
        varying = [_source(one) for one in operands if not is_constant(one)]
        if not varying or not all(map(_is_floating, operands)):
            continue
        if len(operands) == 1:  # the other one is a number
            if gives_floats(varying[0]):
                with_numbers.add(node)
        elif len(varying) == 1 and _has_no_integer_kernel(rw.target, kind(varying[0])):
            found[node] = f"scales or shifts by a constant what {varying[0].name!r} gives in float"
        elif all(map(gives_floats, varying)):
            names = list(dict.fromkeys(repr(one.name) for one in varying))
            give = "gives" if len(names) == 1 else "give"
            found[node] = f"{' and '.join(names)} {give} floats, which quantizers would round first"
    return found


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _source(node: Node) -> Node:
    """Return what computes the values that ``node`` only moves."""
    while kind(node) in MOVES_DATA and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _gives_floats(target: Target, node: Node) -> bool:
    """Return whether a float kernel, but no activation, computes ``node`` whatever comes behind it."""
    word = kind(node)
    if word == "other" and node.op != "call_module":
        return getattr(node.target, "__name__", node.target) in _FUNCTIONS
    return word in target.float_readers or (word in _COMPUTES and not target.rules_for(word))


def _has_no_integer_kernel(target: Target, word: str) -> bool:
    return word in ACTIVATIONS and word not in target.fused_activations and not target.quantizes_inputs(word)


def _may_be_read_in_integers(rw: Rewriter, node: Node, in_float: Mapping[Node, str]) -> bool:
    """Return whether the target computes in integers what reads ``node``, or reads what only moves or clamps it.

    Nothing is planned yet; ``is_read_in_integers`` asks for plans.
    """
    passing = MOVES_DATA | {"max_pool"} | rw.target.fused_activations
    for reader in node.users:
        if kind(reader) in passing:
            if _may_be_read_in_integers(rw, reader, in_float):
                return True
        elif rw.target.quantizes_inputs(kind(reader)) and reader not in in_float and rw.config(reader) is not None:
            return True
    return False


def is_read_in_integers(rw: Rewriter, node: Node) -> bool:
    """Return whether a quantized input is planned for something that reads ``node``, or what moves or clamps it."""
    passing = MOVES_DATA | {"max_pool"} | rw.target.fused_activations
    return any(
        is_quantized(edge) or (kind(edge.consumer) in passing and is_read_in_integers(rw, edge.consumer))
        for edge in output_edges(node)
    )


def is_sliced_for_integers(rw: Rewriter, node: Node, is_slice: bool = False) -> bool:
    """Return whether all that read ``node`` take slices of it, scaled by a number or not, as quantized input."""
    edges = [edge for edge in output_edges(node) if kind(edge.consumer) not in ("shape", "getattr")]
    return bool(edges) and all(
        (is_slice and is_quantized(edge))
        or (
            (kind(edge.consumer) in MOVES_DATA or _scales_by_a_number(edge.consumer))
            and is_sliced_for_integers(rw, edge.consumer, is_slice or kind(edge.consumer) == "slice")
        )
        for edge in edges
    )


def _scales_by_a_number(node: Node) -> bool:
    return kind(node) in ("mul", "div") and len(tensor_edges(node)) == 1


def is_read_quantized(node: Node, descriptor: QuantDescriptor | None = None) -> bool:
    """Return whether all that read ``node`` take quantized input, by this descriptor if any, or pass it on to such."""
    edges = [edge for edge in output_edges(node) if edge.consumer.op == "output" or produces_values(edge.consumer)]
    return bool(edges) and all(
        _reads_as(edge, descriptor)
        or (kind(edge.consumer) in MOVES_DATA | {"max_pool"} and is_read_quantized(edge.consumer, descriptor))
        for edge in edges
    )


def _reads_as(edge: Edge, descriptor: QuantDescriptor | None) -> bool:
    plan = planned_input(edge)
    return is_quantized(edge) and (plan is None or descriptor in (None, plan.descriptor))


def comes_from_conv(node: Node) -> bool:
    """Return whether a convolution computes the input of ``node``, activations and copies aside."""
    producer = node.all_input_nodes[0]
    while kind(producer) in MOVES_DATA | ACTIVATIONS and len(producer.users) == 1 and producer.all_input_nodes:
        producer = producer.all_input_nodes[0]
    return kind(producer) in ("conv", "conv_transpose")


def float_source(rw: Rewriter, node: Node) -> Node | None:
    """Return what computes the input of ``node`` in a float kernel whatever comes behind it, copies aside, or None."""
    producer = _source(node.all_input_nodes[0])
    return producer if _gives_floats(rw.target, producer) or _has_no_integer_kernel(rw.target, kind(producer)) else None


def _where(rw: Rewriter, node: Node) -> str:
    rule = rw.settings.rule_for(node)
    name = str(node.target) if node.op == "call_module" else node.name
    return f"{name!r} ({f'rule {rule}' if rule else 'the default of the recipe'})"
