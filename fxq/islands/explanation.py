"""The explanation of a model with islands: each under its path in the user's model, and what is left around them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn
from torch.fx import GraphModule

from fxq.coverage import Coverage, layers_in
from fxq.explanation import Explanation, NodeExplanation
from fxq.graph.kinds import module_kind
from fxq.islands.layout import MODEL, Islands
from fxq.state import State, find_state


def explain_islands(
    gm: GraphModule, state: State, islands: Islands, explain: Callable[[GraphModule], Explanation]
) -> Explanation:
    """Return one explanation of all islands in ``gm``, as ``explain`` has each, and of the layers outside of them."""
    nodes: list[NodeExplanation] = []
    quantized: list[str] = []
    in_float: list[str] = []
    modules = islands.modules(gm)
    parts = {path: explain(island) for path, island in modules.items()}
    for path, part in parts.items():
        prefix = _prefix(modules[path])
        nodes += [replace(node, path=_below(prefix, node.path)) for node in part.nodes]
        quantized += [_below(prefix, name) for name in part.coverage.quantized]
        in_float += [_below(prefix, name) for name in part.coverage.in_float]
    model = gm.get_submodule(MODEL)
    outside = [pair for name, child in model.named_children() for pair in _layers_outside(name, child)]
    for path, layer in outside:
        nodes.append(NodeExplanation(path, path, module_kind(layer), (), _why_outside(path, islands)))
        in_float.append(path)
    words = " and ".join(sorted({part.coverage.codes for part in parts.values() if part.coverage.quantized}))
    coverage = Coverage(tuple(quantized), tuple(in_float), words)
    notes = (
        f"{len(parts)} islands: {', '.join(parts)}. Around them the model's own Python runs, in float: "
        f"{islands.left.get('', '')}",
        *(f"{path}: {why}" for path, why in islands.left.items() if path),
    )
    return Explanation(state.settings.target.name, state.recipe.name, tuple(nodes), coverage, notes=notes)


def _prefix(island: GraphModule) -> str:
    """Return the path, in the user's model, of what the names of an island begin at."""
    state = find_state(island)
    return state.settings.within[-1][0] if state is not None and state.settings.within else ""


def _below(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


def _layers_outside(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a child that are in no island."""
    if not isinstance(module, GraphModule):
        yield from layers_in(path, module, (GraphModule,))


def _why_outside(path: str, islands: Islands) -> str:
    above = path
    while above:
        if above in islands.left:
            return f"in no island: {islands.left[above]}"
        above = above.rpartition(".")[0]
    return "in no island: the model's own Python calls it"
