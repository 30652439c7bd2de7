"""Channels of very different size waste the codes of a range they share: give each a factor that layers absorb.

See ``accuracy/channel_groups.py`` for where a factor can go, and ``accuracy/channel_scales.py`` for which is best.
A depthwise convolution has a weight range for each channel, so that equal ranges of its input cost nothing; other
layers see the factor in their weights, and the choice is a search. So is whether channels are centered before: one that
reaches from 0 to 8 takes the codes of -8 to 8, and from -4 to 4 where a bias moves it (``accuracy/channel_shifts.py``
has where one can). On MobileNetV2 with trained weights, whose residual streams are read by 1x1 convolutions alone, that
is worth 1.5 dB of the outputs on TensorRT and 2.6 on ONNX Runtime, and costs nothing.

Behind a layer norm whose output something else reads too (the residual of a post-norm transformer), and behind what
lets no factor through and computes in float (GELU, SiLU, hard swish, a gated product), it becomes a multiplication
before the quantizer, and an addition. TensorRT has them in the kernel of what stands before: EfficientNet-B0 with 48
factors compiles to as many kernels, and as much traffic, as without; so do linear layers around GELU with both.

A convolution may have to write codes although norms or activations alone read it, in float
(``accuracy/read_in_float.py``). It takes the factors itself, and the multiplication, and addition, come behind the
quantizer.

Sources: Nagel et al. 2019, arXiv:1906.04721; Xiao et al. 2022, arXiv:2211.10438; Wei et al. 2023, arXiv:2304.09145
(factors and shifts of channels, behind norms).
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxq import ANY, Pass, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import free_path, is_quantizer, is_weighted, kind, output_edges
from fxq.nn import ScaledChannels
from fxq_passes.accuracy.channel_groups import ChannelGroup, UsableLayers, channel_groups, stored_factor
from fxq_passes.accuracy.channel_scales import Change, best_change, equal_ranges
from fxq_passes.accuracy.channel_shifts import shift_root, takes_shift_back
from fxq_passes.accuracy.layer_matrix import LayerMatrix
from fxq_passes.accuracy.options import check_numbers
from fxq_passes.accuracy.read_in_float import ReadInFloat, outputs_read_in_float
from fxq_passes.accuracy.reader import Extremes, Reader
from fxq_passes.folding.computed_weights import constant_nodes

_IN_FLOAT = frozenset({"layer_norm", "rms_norm", "gelu", "silu", "hardswish", "mish"})
_IN_FLOAT_IF_NOT_QUANTIZED = frozenset({"mul", "div"})


@dataclass
class _Seen:
    """What a tensor held: the extremes of each channel, and its readers with samples.

    Args:
        is_vector: a sample has one value of each channel.
    """

    extremes: Extremes
    is_vector: bool
    readers: list[Reader] = field(default_factory=list)


@register_pass("equalize_channels")
@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Center and scale channels so that those of one tensor share its range well; the layers around absorb it.

    Args:
        least_spread: leave the input of depthwise convolutions alone where the largest channel is less than this many
            times the median one: unseen values need the room.
        most_error: take what a search found where it brings the error below this share.
        most_error_of_vector: the same where a sample has one value of each channel, as behind a global pooling: from
            so few values it is hardly known how far each reaches in other samples.
        most_error_of_product: the same where it costs a multiplication, and an addition.
        most_error_before_activation: the same where the multiplication stands between codes that a layer has to write
            and an activation: there small channels mostly stay small.
        samples: positions of a layer's input to judge by.
    """

    stage = Stage.CALIBRATED
    tolerance = ANY
    improves = True
    least_spread: float = 4.0
    most_error: float = 0.9
    most_error_of_vector: float = 0.5
    most_error_of_product: float = 0.5
    most_error_before_activation: float = 0.1
    samples: int = 512

    def __post_init__(self) -> None:
        check_numbers(self)

    def run(self, rw: Rewriter) -> None:
        """Look at all tensors in one walk through the float model, then scale the groups that gain."""
        groups = channel_groups(rw)
        usable = UsableLayers(rw)
        norms = _multiplied_quantizers(rw, groups, usable)
        outputs = outputs_read_in_float(rw, usable)
        consumers = {node for group in groups if group.blocked is None for node in group.consumers}
        consumers.update(reader for readers in norms.values() for reader in readers)
        producers = {one.producer: one for one in outputs}
        seen = self._look(rw, consumers, producers) if consumers or producers else {}
        free = [group for group in groups if group.blocked is None]
        roots = {id(group): shift_root(rw, group, usable) for group in free}
        # All searches come before the first change: none depends on another.
        searched = rw.share_out(free, lambda one: self._search(rw, one, seen, roots[id(one)] is not None))
        found = dict(zip(map(id, free), searched, strict=True))
        before = rw.share_out(list(norms), lambda node: _search_before(rw, node, seen[node]))
        behind = rw.share_out(outputs, lambda one: _search_behind(rw, one, seen[one.producer]))
        for group in groups:
            if group.blocked is None:
                self._change_group(rw, group, roots[id(group)], found[id(group)])
            elif any(_is_quantized(rw, node) for node in group.consumers):
                rw.skip(group.producers[0], f"its channels are not scaled: {group.blocked}")
        for (quantizer, readers), change in zip(norms.items(), before, strict=True):
            self._change_before(rw, quantizer, readers, change)
        for output, change in zip(outputs, behind, strict=True):
            self._change_behind(rw, output, change)

    def _look(self, rw: Rewriter, consumers: set[Node], producers: Mapping[Node, ReadInFloat]) -> dict[Node, _Seen]:
        by_source: dict[Node, list[Node]] = {}
        for node in rw.nodes():
            if node in consumers:
                by_source.setdefault(node.all_input_nodes[0], []).append(node)
        seen = {}
        for source, values in rw.run_float({*by_source, *producers}):
            matrices = [LayerMatrix.of(rw.module(node)) for node in by_source.get(source, ())]
            known = [one for one in matrices if one is not None]
            if source in producers:
                known = [LayerMatrix.of_channels(values[0], rw.module(source).weight.dim() - 2)]
            axis = known[0].channel_axis
            behind = producers[source].behind if source in producers else None
            if behind is None:
                readers = [Reader(one, values, self.samples) for one in known]
            else:
                readers = behind.readers(values, self.samples)
            seen[source] = _Seen(Extremes.of(values, axis), _is_vector(values[0], axis), readers)
            del values  # or the walk could not reuse its memory
        return seen

    def _search(
        self, rw: Rewriter, group: ChannelGroup, seen: dict[Node, _Seen], can_center: bool
    ) -> str | tuple[Change, str]:
        """Return the best change and why it is, or why there is none."""
        sources = list(dict.fromkeys(node.all_input_nodes[0] for node in group.consumers))
        tensors = [seen[source] for source in sources]
        readers = [reader for tensor in tensors for reader in tensor.readers]
        extremes = Extremes.joined([tensor.extremes for tensor in tensors])
        quantizer = _quantizer_of(rw, group, sources)
        if all(reader.matrix.is_depthwise and _has_range_by_channel(reader.matrix.layer) for reader in readers):
            amax_c = extremes.amax()
            spread = float(amax_c.max() / amax_c.median().clamp(min=torch.finfo(amax_c.dtype).tiny))
            if spread < self.least_spread:
                return f"its largest channel is {spread:.1f} times the median one: nothing to gain"
            if not _are_read_as_clipped(group, sources):
                return f"{group.clips[0].name!r} bounds its channels, and what is read is computed from them"
            change = equal_ranges(readers, extremes, quantizer)
            return change, f"channels differed {spread:.1f} times, and {_gain(change)}"
        if group.clips:
            return f"{group.clips[0].name!r} bounds its channels, and a layer mixes them behind it"
        change = best_change(readers, extremes, quantizer, can_center)
        if change.error >= self.most_error_of_vector and any(tensor.is_vector for tensor in tensors):
            return f"a sample has one value of each channel, and factors bring the error to {change.error:.2f} only"
        return change, _gain(change)

    def _change_group(
        self, rw: Rewriter, group: ChannelGroup, root: Node | None, found: str | tuple[Change, str]
    ) -> None:
        if isinstance(found, str):
            rw.skip(group.producers[0], found)
            return
        change, why = found
        if change.error >= self.most_error:
            why = f"no factors bring the error of its readers below {change.error:.2f} of what it is"
            rw.skip(group.producers[0], why)
            return
        if change.shift_c is not None:
            assert root is not None
            _add_to_bias(rw, root, -change.shift_c, f"its channels are centered: {why}")
            _give_back(rw, group.consumers, change.shift_c, why)
        _apply(rw, group, change.scale_c, why)

    def _change_before(self, rw: Rewriter, node: Node, readers: list[Node], change: Change) -> None:
        source = node.all_input_nodes[0]
        if change.error >= self.most_error_of_product:
            rw.skip(source, f"a multiplication would bring the error of its readers to {change.error:.2f} only")
            return
        edges = [edge for edge in output_edges(source) if edge.consumer is node]
        matrix = LayerMatrix.of(rw.module(readers[0]))
        assert matrix is not None
        shape, offset = (-1, *[1] * (-1 - matrix.channel_axis)), None
        if change.shift_c is not None:
            offset = (-change.shift_c / change.scale_c).reshape(shape)
            _give_back(rw, readers, change.shift_c, _gain(change))
        scaled = ScaledChannels(change.scale_c.reciprocal().reshape(shape), offset)
        rw.insert_module_on(edges, free_path(rw.gm, f"{node.target}_scale"), scaled, _gain(change))
        for reader in readers:
            _scale_columns(rw, reader, change.scale_c, _gain(change))

    def _change_behind(self, rw: Rewriter, output: ReadInFloat, change: Change) -> None:
        is_normalized = output.behind is None
        if change.error >= (self.most_error_of_product if is_normalized else self.most_error_before_activation):
            rw.skip(output.producer, f"a multiplication behind it would bring its error to {change.error:.2f} only")
            return
        who = "norms read it" if is_normalized else "activations read it"
        why = f"{who}, in float; its error falls to {change.error:.2f}"
        if change.shift_c is not None:
            _add_to_bias(rw, output.producer, -change.shift_c, f"its channels are centered: {why}")
        _divide_rows(rw, output.producer, change.scale_c, why)
        shape = (-1, *[1] * (-1 - output.axis))
        offset = None if change.shift_c is None else change.shift_c.reshape(shape)
        scaled = ScaledChannels(change.scale_c.reshape(shape), offset)
        path = free_path(rw.gm, f"{output.producer.target}_scale")
        rw.insert_module_on(output_edges(output.last), path, scaled, why)


def _gain(change: Change) -> str:
    return f"the error of its readers falls to {change.error:.2f}"


def _is_vector(value: Tensor, axis: int) -> bool:
    """Return whether a batch has one value for each sample and channel, which ``axis`` counts."""
    return value.numel() == len(value) * value.shape[axis]


def _search_before(rw: Rewriter, node: Node, seen: _Seen) -> Change:
    can_center = all(takes_shift_back(rw, reader) for reader in node.users)
    return best_change(seen.readers, seen.extremes, rw.module(node), can_center)


def _search_behind(rw: Rewriter, output: ReadInFloat, seen: _Seen) -> Change:
    return best_change(seen.readers, seen.extremes, rw.module(output.quantizer), can_center=output.behind is None)


def _multiplied_quantizers(rw: Rewriter, groups: list[ChannelGroup], usable: UsableLayers) -> dict[Node, list[Node]]:
    """Return the quantizers behind what computes in float and no group can scale, with the layers that read each."""
    scalable = {node for group in groups if group.blocked is None for node in group.quantizers}
    found = {}
    calls, stored = usable.calls, constant_nodes(rw)
    for node in rw.nodes(is_quantizer):
        source, readers = node.all_input_nodes[0], list(node.users)
        if node in scalable or not _computes_in_float(source, stored) or calls[str(node.target)] > 1:
            continue
        if rw.module(node).calibrator is None:
            continue  # its range is given
        if all(is_weighted(one) and not usable.why_not(one) for one in readers) and _read_alike(rw, readers):
            found[node] = readers
    return found


def _computes_in_float(node: Node, stored: Set[Node]) -> bool:
    """Return whether a multiplication behind ``node`` stands among others in float, and parts no integer kernel."""
    if kind(node) in _IN_FLOAT or kind(node) == "other":
        return True
    if any(is_quantizer(source) for source in node.all_input_nodes):
        return False
    adds_stored = kind(node) == "add" and not stored.isdisjoint(node.all_input_nodes)
    return kind(node) in _IN_FLOAT_IF_NOT_QUANTIZED or adds_stored


def _read_alike(rw: Rewriter, readers: list[Node]) -> bool:
    """Return whether one dimension counts the channels for all of them."""
    matrices = [LayerMatrix.of(rw.module(reader)) for reader in readers]
    return len({matrix.channel_axis for matrix in matrices if matrix is not None}) == 1


def _quantizer_of(rw: Rewriter, group: ChannelGroup, sources: list[Node]) -> TensorQuantizer | None:
    for node in (*sources, *group.quantizers):
        if is_quantizer(node):
            found: TensorQuantizer = rw.module(node)
            return found if found.is_enabled else None
    inner: TensorQuantizer | None = getattr(rw.module(group.consumers[0]), "input_quantizer", None)
    return inner


def _are_read_as_clipped(group: ChannelGroup, sources: list[Node]) -> bool:
    """Return whether the extremes of what is read are those of what the clips let through, where there are any.

    Behind a mean or a sum they are not, and a bound made from them would cut.
    """
    tensors = [source.all_input_nodes[0] if is_quantizer(source) else source for source in sources]
    return not group.clips or all(tensor in group.clips for tensor in tensors)


def _has_range_by_channel(layer: Any) -> bool:
    """Return whether scaling an output channel of the weight leaves the error of all as it is."""
    quantizer = getattr(layer, "weight_quantizer", None)
    return quantizer is None or not quantizer.is_enabled or quantizer.descriptor.axis is not None


def _is_quantized(rw: Rewriter, node: Node) -> bool:
    return getattr(rw.module(node), "weight_quantizer", None) is not None


def _apply(rw: Rewriter, group: ChannelGroup, scale_c: Tensor, why: str) -> None:
    for node in group.producers:
        _divide_rows(rw, node, scale_c, why)
    for node in group.consumers:
        _scale_columns(rw, node, scale_c, why)
    for node in group.clips:
        clip = rw.module(node)
        bound = nn.Hardtanh(0.0, float(clip.max_val / scale_c.max()))
        rw.replace_module(str(node.target), bound, "its bound takes the largest factor; no sample reached further")


def _give_back(rw: Rewriter, readers: list[Node], shift_c: Tensor, why: str) -> None:
    """Let the biases of layers add what was taken from each channel that they read."""
    for node in readers:
        matrix = LayerMatrix.of(rw.module(node))
        assert matrix is not None
        _add_to_bias(rw, node, matrix.response(shift_c), f"its input is centered: {why}")


def _add_to_bias(rw: Rewriter, node: Node, value_c: Tensor, why: str) -> None:
    module = rw.module(node)
    bias = module.weight.new_zeros(len(value_c)) if module.bias is None else module.bias.detach()
    rw.set_bias(str(node.target), (bias.double() + value_c).to(bias.dtype), why, is_equivalent=True)


def _divide_rows(rw: Rewriter, node: Node, scale_c: Tensor, why: str) -> None:
    factor_node = stored_factor(node)
    if factor_node is not None:
        stored = rw.tensor(factor_node).detach()
        divided = stored / scale_c.to(stored.dtype).reshape(stored.shape)
        rw.set_weight(str(factor_node.target), divided, f"divided: {why}", is_equivalent=True)
        return
    module, path = rw.module(node), str(node.target)
    factor = scale_c.to(module.weight.dtype).reciprocal()
    by_row = factor.reshape(-1, *[1] * (module.weight.dim() - 1))
    rw.set_weight(path, module.weight.detach() * by_row, f"rows scaled: {why}", is_equivalent=True)
    if getattr(module, "bias", None) is not None:
        rw.set_bias(path, module.bias.detach() * factor, "scaled as the weight", is_equivalent=True)


def _scale_columns(rw: Rewriter, node: Node, scale_c: Tensor, why: str) -> None:
    layer = rw.module(node)
    matrix = LayerMatrix.of(layer)
    assert matrix is not None
    weight = matrix.scale_inputs(layer.weight, scale_c)
    rw.set_weight(str(node.target), weight, f"columns scaled: {why}", is_equivalent=True)
