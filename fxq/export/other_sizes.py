"""The graph at other sizes than those of the example inputs: does it run, and is it the model there?

A graph holds what the model's Python decided, and a file what torch made of the graph; both may hold a size that was to
stay open. So both run at other sizes: each open size alone, and all together.
"""

from collections.abc import Mapping
from typing import Any

from torch import fx

from fxq.compare.outputs import copies, running_alike
from fxq.compare.quality import LEAST_DB, sqnr_db
from fxq.errors import ExportError, InputError
from fxq.export.capture import described
from fxq.export.open_shapes import OpenShapes
from fxq.export.parity import Reference
from fxq.float_reference import run_original
from fxq.graph.kinds import module_of
from fxq.graph.size_decisions import Dependence, SizeDecisions
from fxq.original import Original

# At other sizes values are others, and so is their noise; what a burned-in size does is no noise.
_LOST_DB = 10.0
Runs = list[tuple[dict[str, int], Reference]]
_CURE = "Leave it out of dynamic_shapes, or let the model follow it"


def without_decisive(decisions: SizeDecisions | None, shapes: OpenShapes, inputs: tuple[Any, ...]) -> OpenShapes:
    """Return the open sizes that decided nothing in the model's Python while it was traced.

    Raises:
        ExportError: one did that is not optional; names input, dimension and line.
    """
    if decisions is None or not shapes:
        return shapes
    found, failure = decisions.depend_on(inputs, shapes.ranges(inputs))
    optional = {name for one in found for name in one.names if shapes.is_optional(name)}
    if optional:
        return without_decisive(decisions, shapes.without(optional), inputs)
    if found:
        raise ExportError(
            "; ".join(dict.fromkeys(_decided(one, shapes) for one in found[:3])) + f". {_decision_cure()}"
        )
    if failure:
        raise ExportError(
            f"whether the model's Python decides by {', '.join(shapes.names())} cannot be told: its graph does not run "
            f"with these sizes open, {failure}. {_CURE}"
        )
    return shapes


def run_others(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes) -> Runs:
    """Return what the graph makes of other sizes of each open dimension, alone and then all together.

    Raises:
        ExportError: a size cannot be another; names input, dimension and the operation that fixes it.
    """
    runs = _runs(gm, inputs, shapes)
    for name in _unmoved(shapes, runs):
        raise ExportError(_fixed(gm, inputs, shapes, name))
    return runs


def without_fixed(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes) -> OpenShapes:
    """Return the open sizes without those that may turn out fixed, and are."""
    if not any(map(shapes.is_optional, shapes.names())):
        return shapes
    return shapes.without([name for name in _unmoved(shapes, _runs(gm, inputs, shapes)) if shapes.is_optional(name)])


def _unmoved(shapes: OpenShapes, runs: Runs) -> list[str]:
    moved = {name for sizes, _ in runs for name in sizes}
    return [name for name in shapes.names() if name not in moved]


def _runs(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes) -> Runs:
    now, runs = shapes.sizes(inputs), Runs()
    alone: dict[str, int] = {}
    for name in now:
        for size in shapes.others(inputs, name):
            run = _try(gm, inputs, shapes, {name: size})
            if run is not None:
                alone[name] = size
                runs.append(({name: size}, run))
                break
    if len(now) > 1:
        runs += _all_together(gm, inputs, shapes, alone)
    return runs


def check_like_original(original: Original | None, reference: Reference, runs: Runs) -> None:
    """Compare the graph with the user's model at other sizes, where that is there.

    Raises:
        ExportError: the graph returns something else there, which at the sizes of the example inputs it does not.
    """
    model = None if original is None else original.find()
    if model is None:
        return
    expected = run_original(model, reference.inputs)
    usual = [sqnr_db([want], [have]) for (_, want), (_, have) in zip(expected, reference.outputs, strict=True)]
    for sizes, run in runs:
        where = ", ".join(f"{name} {size}" for name, size in sizes.items())
        try:
            outputs = run_original(model, run.inputs)
        except Exception as error:  # the user's model: it may raise anything
            raise ExportError(
                f"with {where} the model itself fails where its graph does not: {error}. Bound the size "
                "(torch.export.Dim(name, min=, max=)), or leave it out of dynamic_shapes"
            ) from error
        for (name, want), (_, have), before in zip(outputs, run.outputs, usual, strict=True):
            if want.shape != have.shape:
                found = f"returns {name!r} of shape {tuple(have.shape)} where the model returns {tuple(want.shape)}"
            else:
                after = sqnr_db([want], [have])
                if before is None or after is None or after >= min(LEAST_DB, before - _LOST_DB):
                    continue
                found = (
                    f"computes another {name!r} than the model: {after:.1f} dB, and {before:.1f} dB at its own sizes"
                )
            raise ExportError(f"with {where} the graph {found}: a size of the example inputs was burned in. {_CURE}")


def adaptive_pools(gm: fx.GraphModule) -> str:
    """Return the adaptive pools of a graph in words, which torch.onnx writes for one size; "" without any."""
    calls = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    called = {node: module_of(node) if node.op == "call_module" else node.target for node in calls}
    return " or ".join([described(node) for node, what in called.items() if "adaptive" in str(what).lower()][:3])


def _try(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes, sizes: Mapping[str, int]) -> Reference | None:
    try:
        return Reference.run(gm, shapes.resized(inputs, sizes))
    except InputError:
        return None


def _all_together(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes, alone: Mapping[str, int]) -> Runs:
    """Return a run in which all sizes are others; an empty list where none of a few works."""
    options = {name: shapes.others(inputs, name) for name in shapes.names()}
    for choose in (lambda name: max(options[name], default=0), lambda name: min(options[name], default=0), alone.get):
        sizes = {name: size for name in options if (size := choose(name))}
        run = _try(gm, inputs, shapes, sizes) if len(sizes) > 1 else None
        if run is not None:
            return [(sizes, run)]
    return []


def _fixed(gm: fx.GraphModule, inputs: tuple[Any, ...], shapes: OpenShapes, name: str) -> str:
    """Return why a size cannot be another: the node that fails."""
    now = shapes.sizes(inputs)[name]
    places = " and ".join(f"dimension {axis} of {shapes.inputs[leaf]!r}" for leaf, axis, _ in shapes.places(name))
    others = shapes.others(inputs, name)
    if not others:
        return (
            f"{places} ({name}) has no other size within its bounds than {now}, that of the example inputs: widen them"
        )
    run = _Watched(gm)
    try:
        with running_alike(gm):
            run.run(*copies(shapes.resized(inputs, {name: others[0]})))
    except Exception as error:  # it did not run before
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        return (
            f"{places} ({name}) cannot stay open: the model works at {now}, that of the example inputs, and not at "
            f"{' or '.join(map(str, others))}. What fixes it is {_newest(run)}, which fails at {others[0]}: "
            f"{reason}. {_CURE} (sizes from x.shape instead of numbers, adaptive pooling before a linear layer); where "
            "only some sizes work, name them: 8 * torch.export.Dim('k'), or Dim(name, min=, max=)"
        )
    raise AssertionError("ran where it did not")


class _Watched(fx.Interpreter):
    """Remembers which node it runs."""

    newest: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.newest = n
        return super().run_node(n)


def _newest(run: _Watched) -> str:
    return "a check of its inputs" if run.newest is None else described(run.newest)


def _decided(one: Dependence, shapes: OpenShapes) -> str:
    places = [
        f"dimension {axis} of {shapes.inputs[leaf]!r} ({name})"
        for name in one.names
        for leaf, axis, _ in shapes.places(name)
    ]
    module = f"module '{one.decision.path}'" if one.decision.path else "the model"
    asked = {"truth": "decides by", "number": "takes for a number", "len": "counts by"}[one.decision.question]
    return (
        f"{' and '.join(places)} cannot stay open: while {module} was traced, its Python {asked} {one.expression}, in "
        f"{one.decision.line}, and the graph holds the answer for the example inputs"
    )


def _decision_cure() -> str:
    return (
        f"{_CURE} in tensor operations; or bound the size so that the answer is always the same "
        "(torch.export.Dim(name, min=, max=), 8 * Dim(name))"
    )
