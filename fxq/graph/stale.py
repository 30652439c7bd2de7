"""Stale ranges: those of activations behind a weight, bias or module that changed after they were fitted."""

from collections.abc import Collection

from torch.fx import GraphModule, Node

from fxq.graph.data_stage import DataStage
from fxq.graph.held_out import narrow_again, widen_observed
from fxq.graph.kinds import module_of
from fxq.graph.observers import fit_observed, observing, observing_quantizers
from fxq.graph.stored import stored_input
from fxq.nn import Quantized, TensorQuantizer


def ranges_behind(gm: GraphModule, paths: Collection[str]) -> dict[str, TensorQuantizer]:
    """Return the quantizers of activations whose fitted range depends on a parameter or module at ``paths``, by path.

    One walk over the graph. Left out: fixed ranges, and those that wait for data yet.
    """
    changed, touched = set(paths), set[Node]()
    found: dict[int, TensorQuantizer] = {}
    for node in gm.graph.nodes:
        if _reads(node, changed) or not touched.isdisjoint(node.all_input_nodes):
            touched.add(node)
            found.update((id(quantizer), quantizer) for quantizer in _activations(node))
    observers = observing_quantizers(gm)
    return {path: one for path, one in observers.items() if id(one) in found and one.has_range}


def fit_again(gm: GraphModule, stale: dict[str, TensorQuantizer], stage: DataStage) -> None:
    """Observe ``stale`` anew, in the float model as its weights are now, and fit them; others keep their ranges.

    Each gets a calibrator of its own: what the one before saw stays whole, should the change be undone.
    """
    data = stage.data
    assert data is not None
    for quantizer in stale.values():
        quantizer.use_calibrator(quantizer.descriptor.calibrator)
    with observing(gm, stale):
        data.feed(gm, "Observing again")
    fit_observed(stale, {})
    if stage.covering is not None:
        before = widen_observed(gm, stale, data)
        stage.covering = (stage.covering - set(stale)) | narrow_again(gm, stale, before, data)


def _reads(node: Node, paths: set[str]) -> bool:
    if node.op == "get_attr":
        return str(node.target) in paths
    if node.op != "call_module":
        return False
    if node.target in paths:
        return True
    return any(f"{node.target}.{name}" in paths for name, _ in module_of(node).named_parameters())


def _activations(node: Node) -> list[TensorQuantizer]:
    module = module_of(node) if node.op == "call_module" else None
    if isinstance(module, TensorQuantizer):
        return [] if stored_input(node) is not None else [module]
    return [quantizer for _, quantizer in module.activations()] if isinstance(module, Quantized) else []
