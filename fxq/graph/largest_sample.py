"""How much memory the largest tensor of a model takes for one sample."""

import torch
from torch.fx import GraphModule


def largest_sample(gm: GraphModule) -> int:
    """Return the bytes of the largest traced tensor over the samples that dimension 0 of the first input counts.

    0 where shapes are not known.
    """
    tensors = [node.meta.get("val") for node in gm.graph.nodes]
    sizes = [_bytes(value) for value in tensors if isinstance(value, torch.Tensor)]
    first = next((node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"), None)
    samples = int(first.shape[0]) if isinstance(first, torch.Tensor) and first.dim() > 1 else 1
    return max(sizes, default=0) // max(samples, 1)


def _bytes(value: torch.Tensor) -> int:
    return int(value.numel()) * value.element_size()
