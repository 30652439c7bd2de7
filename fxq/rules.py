"""Check that the rules of a recipe mean something for a model."""

import difflib
import fnmatch
from collections.abc import Collection, Sequence

from torch import nn
from torch.fx import GraphModule

from fxq.errors import RecipeError
from fxq.graph.match import owner_path, rule_path
from fxq.module_tree import named_modules
from fxq.quant.qconfig import Rule


def names_of_operations(gm: GraphModule, path: str = "") -> set[str]:
    """Return the names that rules have for the operations in the graph of the part of a model at ``path``."""
    found: set[str] = set()
    for node in gm.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            found |= {rule_path(node), f"{owner_path(node)}.{node.name}".lstrip(".")}
    return {f"{path}.{name}".lstrip(".") for name in found}


def check_rules(rules: Sequence[Rule], model: nn.Module, operations: Collection[str]) -> None:
    """Raise a RecipeError for a glob that matches no module of the model and no operation in its graph."""
    paths = {*operations, *(path for path, _ in named_modules(model, remove_duplicate=False))}
    for rule in rules:
        if isinstance(rule.match, str) and not fnmatch.filter(paths, rule.match):
            close = difflib.get_close_matches(rule.match, paths, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "see model.named_modules()"
            raise RecipeError(f"rule {rule} matches no module of the model; {hint}")
