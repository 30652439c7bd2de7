"""Convert islands, and compare: each with the user's module, and the whole where what it returns can be compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from torch.fx import GraphModule

from fxq.batches import Inputs
from fxq.compare.outputs import Named
from fxq.compare.quality import Quality, measure
from fxq.compare.worst_layers import LayerLoss, worst_layers
from fxq.errors import FxqError
from fxq.explanation import Explanation
from fxq.float_reference import CHANGED, GRAPH, ORIGINAL, placed_like, run_all
from fxq.graph.float_model import in_float
from fxq.graph.modules import copy_graph
from fxq.islands.explanation import explain_islands
from fxq.islands.layout import Islands, put_in_place
from fxq.model_checks import levels_to_caller
from fxq.original import checksum
from fxq.stage import Stage
from fxq.state import State, find_state, set_state
from fxq.verdict import judge

_MOST_SHOWN = 3


@dataclass(frozen=True)
class Demand:
    """How good the result must be: ``min_sqnr_db`` None for what the recipe says; ``strict`` raises, not warns."""

    min_sqnr_db: float | None
    strict: bool


def convert_islands(
    prepared: GraphModule, state: State, islands: Islands, convert: Callable[[GraphModule], GraphModule], demand: Demand
) -> GraphModule:
    """Return a copy of ``prepared`` with each island converted by ``convert``.

    Raises:
        FxqError: an island cannot be converted; its path is named.
        AccuracyError: the demand is strict, and not met.
    """
    gm = copy_graph(prepared).eval()
    modules, copied = islands.modules(prepared), islands.modules(gm)
    parts: dict[str, Explanation] = {}
    for path, island in modules.items():
        try:
            lowered = convert(island)
        except FxqError as error:
            error.add_note(f"raised for the island {path!r}")
            raise
        put_in_place(gm, copied[path], lowered)
        parts[path] = explanation_of(lowered)
    explanation = explain_islands(gm, state, islands, explanation_of)
    quality, note = _compare(prepared, gm, state)
    notes = (*explanation.notes, note) if note else explanation.notes
    set_state(gm, replace(state, stage=Stage.LOWERED, explanation=replace(explanation, quality=quality, notes=notes)))
    least = state.recipe.min_sqnr_db if demand.min_sqnr_db is None else demand.min_sqnr_db
    if quality is not None:
        judge(
            "the converted model", quality, explanation.coverage, least, demand.strict, lambda: _losses(parts),
            levels_to_caller(),
        )  # fmt: skip
        return gm
    for path, part in parts.items():
        if part.quality is None:
            continue
        own = find_state(modules[path])
        inputs = () if own is None or own.compared is None else own.compared.inputs[:1]
        find_worst = partial(worst_layers, modules[path], inputs)
        judge(f"the island {path!r}", part.quality, part.coverage, least, demand.strict, find_worst, levels_to_caller())
    return gm


def _losses(parts: Mapping[str, Explanation]) -> list[LayerLoss]:
    """Return the islands that lose most, each by itself, the worst first."""
    found = [(path, part.quality.sqnr_db) for path, part in parts.items() if part.quality is not None]
    losses = [LayerLoss(path, math.inf, decibel) for path, decibel in found if decibel is not None]
    return sorted(losses, key=lambda loss: loss.output_db)[:_MOST_SHOWN]


def explanation_of(lowered: GraphModule) -> Explanation:
    """Return what ``convert`` stored with an island."""
    state = find_state(lowered)
    assert state is not None
    assert state.explanation is not None
    return state.explanation


def _compare(prepared: GraphModule, converted: GraphModule, state: State) -> tuple[Quality | None, str]:
    """Return how close the whole is to the user's model, or why that cannot be told."""
    if state.compared is None:
        return None, ""
    inputs = placed_like(prepared, state.compared.inputs)
    is_changed = checksum(prepared) != state.compared.checksum
    model = (
        state.original.find() if state.original is not None and state.compared.is_original and not is_changed else None
    )
    if model is not None:
        expected, against = run_all(model, placed_like(model, inputs)), ORIGINAL
    else:
        with in_float(prepared):
            expected, against = run_all(prepared, inputs), CHANGED if is_changed else GRAPH
    found = run_all(converted, inputs)
    why = _why_incomparable(expected, found)
    if why is None:
        return measure(expected, found, sum(map(_samples, inputs)), against), ""
    return None, f"the outputs of the whole are not compared with {against}: {why}; each island is, on what it is given"


def _samples(inputs: Inputs) -> int:
    """Return how long the first input is: a batch, or a list of images."""
    first = next((value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, Tensor | list)), None)
    return 1 if first is None or (isinstance(first, Tensor) and not first.dim()) else len(first)


def _why_incomparable(expected: Sequence[Named], found: Sequence[Named]) -> str | None:
    """Return why outputs cannot be compared place by place.

    A model that selects, such as a detector, may choose other things, or list them in another order: its integers
    (labels, indices) then differ.
    """
    for wanted, given in zip(expected, found, strict=True):
        if [name for name, _ in wanted] != [name for name, _ in given]:
            return "it returns others"
        for (name, want), (_, have) in zip(wanted, given, strict=True):
            if want.shape != have.shape:
                return f"it returns {name!r} of shape {tuple(have.shape)} for {tuple(want.shape)}"
            if not want.is_floating_point() and not want.equal(have):
                return f"it returns another {name!r}, so it selects otherwise"
    if not any(value.numel() for outputs in expected for _, value in outputs):
        return "it returns nothing on these inputs"
    return None
