"""Check that the rules of a recipe mean something for a model."""

import difflib
import fnmatch
from collections.abc import Sequence

from torch import nn
from torch.fx import GraphModule

from fxq.errors import RecipeError
from fxq.graph.match import module_path
from fxq.quant.qconfig import Rule


def check_rules(rules: Sequence[Rule], model: nn.Module, gm: GraphModule) -> None:
    """Raise a RecipeError for a glob that matches no module of the model and no function in its graph."""
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    paths |= {f"{module_path(node)}.{node.name}".lstrip(".") for node in gm.graph.nodes if node.op == "call_function"}
    for rule in rules:
        if isinstance(rule.match, str) and not fnmatch.filter(paths, rule.match):
            close = difflib.get_close_matches(rule.match, paths, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "see model.named_modules()"
            raise RecipeError(f"rule {rule} matches no module of the model; {hint}")
