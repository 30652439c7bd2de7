"""Graphs traced anew, of a whole or of islands, with the plans of a file in place of the passes that made them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import Inputs, as_positional
from fxq.errors import FxqError, SavedModelError
from fxq.float_reference import placed_like
from fxq.graph.weight_changes import WeightChanges
from fxq.islands.calls import record_calls
from fxq.islands.layout import Islands, put_in_place
from fxq.islands.preparation import prepare_island, whole_of
from fxq.model_checks import copy_model
from fxq.preparation import prepare_graph
from fxq.request import Request
from fxq.saving.edits import do_again
from fxq.saving.graph_text import check_same_graph, note_plans
from fxq.saving.input_forms import inputs_of_form
from fxq.stage import Stage
from fxq.state import require_state, set_state


def graph_again(prepare: Callable[[Request], GraphModule], fields: Mapping[str, Any], request: Request) -> GraphModule:
    """Return the graph that ``fields`` of a file describe, without its tensors; what it replaced is in its state.

    Raises:
        SavedModelError: the model computes something else.
    """
    gm = prepare(replace(request, note_plans=partial(note_plans, planned=fields["plans"])))
    replaced = do_again(gm, fields["edits"])
    check_same_graph(gm, fields["graph"])
    set_state(gm, replace(require_state(gm, Stage.PREPARED, "load"), changes=WeightChanges(replaced=replaced)))
    return gm


def islands_again(
    model: nn.Module, header: Mapping[str, Any], inputs: tuple[Any, ...] | None, request: Request, are_real: bool
) -> GraphModule:
    """Return the whole with its islands where they were.

    Args:
        model: the user's; not modified, and run only on real inputs.
        header: of the file.
        inputs: of the whole, by position.
        request: for the whole.
        are_real: they are not made up, so that the islands get what the model gives to them.

    Raises:
        SavedModelError: the file does not tell what an island was called with, or one computes something else.
    """
    copied = copy_model(model).eval()
    parts = {path: copied.get_submodule(path) for path in header["islands"]}
    is_run = are_real and inputs is not None
    calls = record_calls(copied, parts, [Inputs(inputs or (), {}).fitting(copied)]) if is_run else {}
    for path, fields in header["islands"].items():
        part = parts[path]
        if calls.get(path):
            given = as_positional(part, tuple(calls[path][0]))
        else:
            given = _made_up(model, path, fields["inputs"])
        prepare = partial(prepare_island, model, path, part, given, prepare=prepare_graph)
        try:
            island = graph_again(prepare, fields, replace(request, operations=set()))
        except FxqError as error:
            error.add_note(f"raised for the island {path!r}")
            raise
        put_in_place(copied, part, island)
    if inputs is None:
        raise _lacks_inputs("")
    return whole_of(model, copied, inputs, request, Islands(tuple(header["islands"]), dict(header["left"])))


def _made_up(model: nn.Module, path: str, form: Any) -> tuple[Any, ...]:
    if form is None:
        raise _lacks_inputs(path)
    ((inputs, _),) = placed_like(model, (Inputs(inputs_of_form(form), {}),))
    return tuple(inputs)


def _lacks_inputs(path: str) -> SavedModelError:
    what = f"the island {path!r}" if path else "the model"
    return SavedModelError(f"the file holds no shapes of what {what} was called with: pass example_inputs to load")
