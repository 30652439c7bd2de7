"""Whether the parameters of a layer may be changed."""

from collections import Counter
from typing import Any

from fxq import Rewriter
from fxq.graph import why_altered
from fxq.nn import computed_tensors


def why_not_plain(module: Any) -> str | None:
    """Return why a module may compute something else than its kind says, or more; None if it is torch's own."""
    computed = computed_tensors(module)
    if computed:
        name, how = next(iter(computed.items()))
        return f"{name} is {how} in each call, to be trained"
    if not type(module).__module__.startswith("torch.nn.modules."):
        return f"{type(module).__name__} is a subclass that may compute something else, or is quantized by hand"
    altered = why_altered(module)
    if altered is not None:
        return f"{type(module).__name__} {altered}; remove it first"
    if getattr(module, "running_mean", ...) is None:
        return "it normalizes with the statistics of the batch"
    return None


def uses_by_id(rw: Rewriter) -> Counter[int]:
    """Return how many nodes call each module and read each stored tensor, by id: once for all, folding changes none."""
    calls = [id(rw.module(node)) for node in rw.nodes(lambda node: node.op == "call_module")]
    reads = [id(rw.tensor(node)) for node in rw.nodes(lambda node: node.op == "get_attr")]
    return Counter(calls + reads)


def uses_of(layer: Any, uses: Counter[int]) -> int:
    """Return how many nodes call a layer, or read its parameters, which folding would change."""
    return uses[id(layer)] + sum(uses[key] for key in {id(layer.weight), id(layer.bias)} - {id(None)})
