"""Check that the rules of a recipe mean something for a model."""

import difflib
import fnmatch
from collections.abc import Collection, Sequence

from torch import nn
from torch.fx import GraphModule

from fxq.errors import RecipeError
from fxq.graph.match import module_path
from fxq.quant.qconfig import Rule


def names_of_functions(gm: GraphModule, path: str = "") -> set[str]:
    """Return the names that rules have for the functions in the graph of the part of a model at ``path``."""
    names = (f"{module_path(node)}.{node.name}".lstrip(".") for node in gm.graph.nodes if node.op == "call_function")
    return {f"{path}.{name}".lstrip(".") for name in names}


def check_rules(rules: Sequence[Rule], model: nn.Module, functions: Collection[str]) -> None:
    """Raise a RecipeError for a glob that matches no module of the model and no function in its graph."""
    paths = {*functions, *(path for path, _ in model.named_modules(remove_duplicate=False))}
    for rule in rules:
        if isinstance(rule.match, str) and not fnmatch.filter(paths, rule.match):
            close = difflib.get_close_matches(rule.match, paths, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "see model.named_modules()"
            raise RecipeError(f"rule {rule} matches no module of the model; {hint}")
