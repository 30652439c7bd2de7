"""Where a quantized model loses most: the layers whose output is much further from the float model than their input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from fxq.batches import Inputs
from fxq.compare.quality import sqnr_db
from fxq.graph.float_model import own_weights
from fxq.graph.match import is_quantizer, is_weighted
from fxq.graph.streams import Streams, Values


@dataclass(frozen=True)
class LayerLoss:
    """SQNR against the float model before and behind one layer; infinite before the first loss."""

    path: str
    input_db: float
    output_db: float

    def __str__(self) -> str:
        before = "exact" if math.isinf(self.input_db) else f"{self.input_db:.1f} dB"
        return f"{self.path!r} ({before} before it, {self.output_db:.1f} dB behind it)"


def worst_layers(prepared: GraphModule, inputs: Sequence[Inputs], most: int = 3) -> list[LayerLoss]:
    """Return the convolutions and linear layers of a calibrated model that lose most, the worst first.

    Args:
        prepared: with ranges.
        inputs: of calls; one sample is enough to tell.
        most: how many to return.
    """
    layers = {node: _source(node) for node in prepared.graph.nodes if is_weighted(node)}
    found: dict[Node, float] = {}
    streams = Streams(prepared, inputs, own_weights(prepared), [])
    for node, values in streams.walk([*layers, *layers.values()], "worst_layers"):
        found[node] = _sqnr(values)
    losses = [LayerLoss(str(node.target), found[source], found[node]) for node, source in layers.items()]
    losses.sort(key=lambda loss: min(loss.input_db, 60.0) - loss.output_db, reverse=True)
    return [loss for loss in losses[:most] if loss.output_db < loss.input_db]


def _source(node: Node) -> Node:
    source = node.all_input_nodes[0]
    return source.all_input_nodes[0] if is_quantizer(source) else source


def _sqnr(values: Values) -> float:
    pairs = [pair for pair in zip(*values, strict=True) if all(isinstance(one, Tensor) for one in pair)]
    found = sqnr_db([want for want, _ in pairs], [have for _, have in pairs])
    return math.inf if found is None else found
