"""What the pass that swaps modules asks about those that only some calls and options can lower."""

from typing import Any

from torch.fx import Node

from fxq import find_lowering
from fxq.graph import kind


def why_not_lowered(node: Node, module: Any) -> str | None:
    """Return why a call of ``module`` has no lowered form, so that it stays in float; None if it has one."""
    if kind(node) == "embedding" and module.sparse:
        return "sparse gradients do not pass a quantizer"
    found = find_lowering(module)
    return None if found is None else found.why_not(node, module)
