"""Ranges and histograms of what is quantized: of a prepared model from its quantizers, a converted one from a run.

The range of stored codes is ``[(lo - zero_point) * scale, (hi - zero_point) * scale]``, lo and hi the outermost codes.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from fxq.calib import HistogramCalibrator
from fxq.data import Data
from fxq.graph.observers import activation_quantizers
from fxq.graph.stored import weight_quantizers
from fxq.graph.streams import by_placeholder, function_of, last_reads
from fxq.nn import TensorQuantizer
from fxq.nn.quantized import quantizer_name
from fxq.quant import DEQUANTIZE, DEQUANTIZE_LOW_BIT, QUANTIZE
from fxq.quant.descriptor import integer_bounds
from fxq.reporting.content import Histogram, TensorRange
from fxq.reporting.graph import scale_owner

BINS = 64
_BITS = re.compile(r"int(\d+)")


def ranges_of_prepared(gm: GraphModule) -> Iterator[TensorRange]:
    """Yield the ranges of a prepared model; histograms of activations are those that calibration made."""
    for path, quantizer in activation_quantizers(gm).items():
        yield _from_quantizer(path, quantizer, False, _kept_by(quantizer.calibrator))
    paths = {id(module): path for path, module in gm.named_modules() if isinstance(module, TensorQuantizer)}
    for _, weight, quantizer in weight_quantizers(gm):
        if quantizer.is_enabled:
            yield _from_quantizer(paths[id(quantizer)], quantizer, True, histogram_of(weight))


def ranges_of_converted(gm: GraphModule, data: Data | None, formats: Mapping[str, str]) -> Iterator[TensorRange]:
    """Yield the ranges of a converted model; activations have a histogram where there is data to run it on.

    ``formats``: of quantizers by path, in words as of ``fxq.explain``.
    """
    quantize = [node for node in gm.graph.nodes if node.target is QUANTIZE]
    seen = {} if data is None else _observed(gm, quantize, data)
    by_owner: dict[str, HistogramCalibrator | None] = {}
    for node in quantize:
        by_owner.setdefault(scale_owner(node), None)
        if node in seen:
            known = by_owner[scale_owner(node)]
            if known is None:
                by_owner[scale_owner(node)] = seen[node]
            else:
                known.merge(seen[node])
    first = {scale_owner(node): node for node in reversed(quantize)}
    for owner, calibrator in by_owner.items():
        scale, zero_point = (_stored(gm, one) for one in first[owner].args[1:3])
        low, high = ((code - zero_point.double()) * scale.double() for code in first[owner].args[4:6])
        yield TensorRange(owner, False, float(low.min()), float(high.max()), scale.numel(), _kept_by(calibrator))
    for node in gm.graph.nodes:
        codes = node.args[0] if node.target in (DEQUANTIZE, DEQUANTIZE_LOW_BIT) else None
        if isinstance(codes, Node) and codes.op == "get_attr":
            owner, _, name = str(codes.target).rpartition(".")
            values = function_of(gm, node, {})(*map_arg(node.args, lambda one: _stored(gm, one)))
            path = f"{owner}.{quantizer_name(name)}".lstrip(".")
            low, high = _range_of_codes(gm, node, formats.get(path, "")) or (None, None)
            yield TensorRange(path, True, low, high, _stored(gm, node.args[1]).numel(), histogram_of(values))


def histogram_of(values: Tensor) -> Histogram | None:
    """Return the histogram of stored values; None of none, and of what is not finite."""
    found = values.detach().float().flatten()
    if not found.numel() or not bool(torch.isfinite(found).all()):
        return None
    low, high = (float(bound) for bound in torch.aminmax(found))
    if low == high:
        return Histogram(low, high, (found.numel(),))
    counts = torch.histc(found.cpu(), BINS, low, high)
    return Histogram(low, high, tuple(int(count) for count in counts.tolist()))


def _from_quantizer(path: str, quantizer: TensorQuantizer, is_weight: bool, seen: Histogram | None) -> TensorRange:
    if not quantizer.has_range or quantizer.is_dynamic:
        return TensorRange(path, is_weight, None, None, 1, seen)
    low, high = (bound.detach() for bound in quantizer.range)
    return TensorRange(path, is_weight, float(low.min()), float(high.max()), low.numel(), seen)


def _range_of_codes(gm: GraphModule, node: Node, format_in_words: str) -> tuple[float, float] | None:
    """Return the outermost range of stored codes; None of a bias, whose 32 bits are no fitted range."""
    dtype, scale = _stored(gm, node.args[0]).dtype, _stored(gm, node.args[1]).double()
    if dtype is torch.int32:
        return None
    is_low_bit = node.target is DEQUANTIZE_LOW_BIT
    zero_point = torch.zeros_like(scale) if is_low_bit else _stored(gm, node.args[2]).double()
    low, high = ((code - zero_point) * scale for code in _outermost_codes(node, dtype, format_in_words))
    return float(low.min()), float(high.max())


def _outermost_codes(node: Node, dtype: torch.dtype, format_in_words: str) -> tuple[int, int]:
    if dtype.is_floating_point:
        largest = int(torch.finfo(dtype).max)
        return -largest, largest
    told = _BITS.search(format_in_words)  # codes of fewer bits may be stored in 8
    bits = node.args[2] if node.target is DEQUANTIZE_LOW_BIT else int(told[1]) if told else torch.iinfo(dtype).bits
    assert isinstance(bits, int)
    return integer_bounds(bits, not dtype.is_signed, narrow_range=False)


def _kept_by(calibrator: object) -> Histogram | None:
    """Return what a calibrator counted, in at most ``BINS`` bins; None where it did not count."""
    counts = calibrator.counts if isinstance(calibrator, HistogramCalibrator) else None
    if not isinstance(calibrator, HistogramCalibrator) or counts is None or calibrator.edges is None:
        return None
    edges = calibrator.edges
    together = -(-len(counts) // BINS)
    sums = [int(part.sum()) for part in torch.split(counts, together)]
    width = float(edges[1] - edges[0])
    low = float(edges[0])
    return Histogram(low, low + width * together * len(sums), tuple(sums), calibrator.symmetric)


def _observed(gm: GraphModule, quantize: list[Node], data: Data) -> dict[Node, HistogramCalibrator]:
    """Run a converted model, and count what each quantize node is given."""
    seen = {node: HistogramCalibrator(num_bins=BINS, symmetric=False) for node in quantize}
    order = list(gm.graph.nodes)
    dying = last_reads(order)
    with torch.no_grad():
        for _, inputs in data.stream(gm, "Reading activations"):
            given, values = by_placeholder(gm, inputs), {}
            for node in order:
                if node.op == "placeholder":  # a node may write into it, and the batch is the caller's
                    values[node] = pytree.tree_map_only(Tensor, torch.clone, given[node.name])
                    continue
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                if node in seen:
                    seen[node].observe(args[0])
                values[node] = function_of(gm, node, {})(*args, **kwargs)
                for read in dying.get(node, ()):
                    values.pop(read, None)
    return seen


def _stored(gm: GraphModule, node: object) -> Tensor:
    assert isinstance(node, Node)
    found = function_of(gm, node, {})()
    assert isinstance(found, Tensor)
    return found
