"""State: what fxq remembers with a graph module between prepare, calibrate, convert and export."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.calibration_report import CalibrationReport
from fxq.errors import FxqError, StageError
from fxq.explanation import Explanation
from fxq.float_reference import ComparedInputs, FloatReference
from fxq.graph.settings import Settings
from fxq.graph.size_decisions import SizeDecisions
from fxq.graph.streams import by_placeholder
from fxq.graph.weight_changes import WeightChanges
from fxq.islands.layout import Islands
from fxq.module_tree import named_parameters, named_tensors
from fxq.original import Original
from fxq.recipe import Recipe
from fxq.record import Record
from fxq.saving.packed import Source
from fxq.stage import Stage

_KEY = "fxq"


@dataclass(frozen=True)
class State:
    """The stage of a graph module, how it came there, and what calibration did to its weights.

    ``verify``: hold each pass to its tolerance, one by one. ``original``: the user's model; ``compared``: inputs to
    compare on, None where there were none; ``reference``: what the float model makes of them, once it was asked;
    ``islands``: the parts that were prepared, where the model as a whole does not trace.
    ``traced``: how, in words, where not by the first front end.
    ``decisions``: what was decided by sizes while tracing.
    ``frontend`` and ``untraceable``: as ``prepare`` was asked.
    ``source``: of a converted model, what ``fxq.save`` stores of the prepared one, or why it cannot.
    ``calibration``: what ``fxq.calibrate`` returned, None before.
    """

    stage: Stage
    recipe: Recipe
    settings: Settings
    record: Record = field(default_factory=Record)
    explanation: Explanation | None = None
    verify: bool = False
    changes: WeightChanges = field(default_factory=WeightChanges)
    original: Original | None = None
    compared: ComparedInputs | None = None
    reference: FloatReference | None = None
    traced: str = ""
    decisions: SizeDecisions | None = None
    islands: Islands | None = None
    frontend: str = "auto"
    untraceable: str = "error"
    source: Source | FxqError | None = None
    calibration: CalibrationReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds neither the user's model nor samples of the data."""
        return {**vars(self), "original": None, "compared": None, "reference": None, "decisions": None, "source": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        """Nothing in it is ever modified but the record."""
        return replace(self, record=self.record.copy())

    def known_inputs(self, gm: GraphModule) -> tuple[Any, ...] | None:
        """Return positional inputs that ``gm`` ran on: the example inputs, or else samples of calibration."""
        if self.settings.example_inputs is not None:
            return self.settings.example_inputs
        kept = self.compared or self.reference
        return None if kept is None else tuple(by_placeholder(gm, kept.inputs[0]).values())

    def at(self, stage: Stage) -> "State":
        """Return the state at another stage."""
        return replace(self, stage=stage)


def set_state(gm: GraphModule, state: State) -> None:
    """Store the state with the graph module."""
    gm.meta[_KEY] = state


def find_state(model: nn.Module) -> State | None:
    """Return the state of a graph module that fxq made, None for any other module."""
    found = getattr(model, "meta", {}) if isinstance(model, GraphModule) else {}
    state = found.get(_KEY)
    return state if isinstance(state, State) else None


def check_has_all(model: nn.Module, call: str) -> None:
    """Raise a StageError if a parameter of ``model`` is sharded over processes, of which each has a part."""
    for path, parameter in named_parameters(model):
        # A DTensor, whose module is heavy to import, is of a type of its own.
        if type(parameter) is not nn.Parameter and hasattr(parameter, "full_tensor"):
            raise StageError(
                f"{call} computes with whole parameters, and {path!r} is sharded over processes (fully_shard): take "
                "the whole state in all of them (torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True, cpu_offload=False))), prepare the model again by the "
                "same recipe, load_state_dict it, and go on with that"
            )


def check_values(model: nn.Module, call: str) -> None:
    """Raise a StageError if ``call`` cannot read a tensor of ``model``.

    It is sharded, or on the meta device, where there are shapes and no values.
    """
    check_has_all(model, call)
    for path, tensor in named_tensors(model):
        if tensor.is_meta:
            raise StageError(
                f"{call} computes with the model's weights, and {path!r} is on the meta device, which keeps no values: "
                "give the model its weights before prepare (model.to_empty(device='cpu'), then load_state_dict)"
            )


def require_state(model: nn.Module, stage: Stage, call: str) -> State:
    """Return the state of ``model``, which must be at ``stage``; a calibrated model is a prepared one still.

    Raises:
        StageError: it is not; the message says what to call first.
    """
    state = find_state(model)
    needs = {
        Stage.PREPARED: "fxq.prepare(model, ...)",
        Stage.LOWERED: "fxq.convert(prepared)",
        Stage.INTEGER: "fxq.to_integer(converted)",
    }[stage]
    if state is None:
        saved = (
            "; torch.save keeps what the model computes and drops what fxq knows of it: use fxq.save(prepared, path) "
            "and fxq.load(path, model)"
        )
        hint = saved if isinstance(model, GraphModule) else ""
        raise StageError(f"{call} takes the result of {needs}, got {type(model).__name__}{hint}")
    if state.stage is not stage and (state.stage, stage) != (Stage.CALIBRATED, Stage.PREPARED):
        raise StageError(f"{call} takes the result of {needs}, got a model at stage '{state.stage}'")
    return state
