"""Which front end traces a model: torch.fx follows its Python (symbolic), or torch.export runs it (export)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import nn
from torch.fx import GraphModule

from fxq.compare.traced import Checked, check_traced
from fxq.errors import InputError, TraceError
from fxq.given_model import holds_program
from fxq.graph.size_decisions import KEY, SizeDecisions
from fxq.graph.trace import trace
from fxq.graph.training import trace_for_training

Frontend = Literal["auto", "symbolic", "export"]
Trace = Callable[..., GraphModule]
NAMES = ("auto", "symbolic", "export")


def _export(model: nn.Module, inputs: Any, leaf_modules: Sequence[str], is_trained: bool = False) -> GraphModule:
    # torch.export takes as long to import as all of fxq, and most models do not need it.
    from fxq.frontend.exported import trace_exported  # noqa: PLC0415

    return trace_exported(model, inputs, leaf_modules)


_TRACES: Mapping[str, Trace] = MappingProxyType({"symbolic": trace, "export": _export})


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Args:
        gm: the graph module.
        checked: what running the model on the example inputs told.
        how: which front end made it and why, in words; "" for the first one.
        decisions: what the model's Python decided by sizes; None where that is checked in the graph's code.
    """

    gm: GraphModule
    checked: Checked
    how: str = ""
    decisions: SizeDecisions | None = None


def trace_model(
    model: nn.Module,
    inputs: tuple[Any, ...] | None,
    leaf_modules: Sequence[str],
    frontend: Frontend = "auto",
    training_level: int | None = None,
) -> Traced:
    """Return the graph of ``model``, which computes what the model computes on the example inputs.

    Args:
        model: in eval mode; not modified.
        inputs: positional example inputs; torch.export needs them.
        leaf_modules: modules to keep whole, as globs.
        frontend: "symbolic", "export", or "auto": symbolic, and export where that fails.
        training_level: the stacklevel of warnings where what the model does in training is to be kept; else None.

    Raises:
        InputError: there is no such front end, or no inputs for "export", or the model does not run on them.
        TraceError: the model cannot be traced, or only to a graph that computes something else.
    """
    if frontend not in NAMES:
        raise InputError(f"frontend is {', '.join(map(repr, NAMES[:-1]))} or {NAMES[-1]!r}, got {frontend!r}")
    if frontend == "export" and inputs is None:
        raise InputError('frontend="export" runs the model: give prepare() example_inputs')
    is_program = holds_program(model)
    if is_program and (frontend == "symbolic" or inputs is None):
        raise InputError(
            f"the model ({type(model).__name__}) is a program of torch.export, which is traced by running it: give "
            'prepare() example_inputs, and leave frontend at "auto"'
        )
    first = "export" if is_program or frontend == "export" else "symbolic"
    try:
        gm, checked = _traced(_TRACES[first], model, inputs, leaf_modules, training_level)
    except TraceError as error:
        if first == "export" or frontend != "auto" or inputs is None:
            raise
        failure = error
    else:
        how = "" if first == "symbolic" else f"traced by torch.export, {_why(frontend)}"
        return Traced(gm, checked, how, gm.meta.pop(KEY, None))
    try:
        gm, checked = _traced(_export, model, inputs, leaf_modules, training_level)
    except TraceError as error:
        if str(error) != str(failure):
            failure.add_note(f"torch.export was tried as well: {error}")
        raise failure from error
    return Traced(gm, checked, f"traced by torch.export, for torch.fx cannot follow the model: {failure.reason}")


def _why(frontend: Frontend) -> str:
    return "as asked for" if frontend == "export" else "for the model is a program of it"


def _traced(
    trace: Trace, model: nn.Module, inputs: Any, leaf_modules: Sequence[str], training_level: int | None
) -> tuple[GraphModule, Checked]:
    if training_level is None:
        gm = trace(model, inputs, leaf_modules)
    else:
        trained = functools.partial(trace, is_trained=True)
        gm = trace_for_training(model, inputs, leaf_modules, training_level + 2, trained)
    return gm, Checked(has_numbers=False) if inputs is None else check_traced(model, gm, inputs)
