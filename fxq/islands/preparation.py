"""Prepare what traces of a model that does not trace itself."""

import glob
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import Inputs, as_positional
from fxq.errors import InputError, TraceError
from fxq.float_reference import ComparedInputs
from fxq.graph.settings import Settings
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.trace import leaf_paths
from fxq.islands.layout import Islands, graph_around
from fxq.islands.search import NEVER_RUNS, find_islands, left_layers
from fxq.islands.shell import shell_of
from fxq.model_checks import copy_model, levels_to_caller
from fxq.nn import TensorQuantizer
from fxq.original import Original
from fxq.request import Request
from fxq.rules import check_rules
from fxq.stage import Stage
from fxq.state import State, require_state, set_state

PrepareGraph = Callable[[nn.Module, tuple[Any, ...] | None, Request], GraphModule]
_MOST_SHOWN = 5


def prepare_islands(
    model: nn.Module, inputs: tuple[Any, ...] | None, request: Request, prepare: PrepareGraph, error: TraceError
) -> GraphModule:
    """Return a copy of ``model`` in which the largest parts that trace are prepared.

    Args:
        model: not modified.
        inputs: positional example inputs.
        request: for the whole.
        prepare: prepares a part.
        error: why the whole does not trace.

    Raises:
        InputError: there are no example inputs.
        TraceError: no part has anything to quantize.
    """
    if inputs is None:
        raise InputError(
            'untraceable="islands" runs the model to see what its parts are given: give prepare() example_inputs. '
            f"{error}"
        ) from error
    operations: set[str] = set()
    leaves = leaf_paths(model, request.leaf_modules)
    copied = copy_model(model).eval()

    def prepare_part(path: str, part: nn.Module, call: Inputs) -> GraphModule:
        given = as_positional(part, (call.args, call.kwargs))
        return prepare_island(model, path, part, given, replace(request, operations=operations), prepare)

    found = find_islands(copied, Inputs(inputs, {}).fitting(copied), prepare_part, leaves, request.qat)
    left = left_layers(found.left, model)
    if not found.islands:
        why = "; ".join(f"{path!r} {reason}" for path, reason in left.items())
        raise TraceError(
            f"no part of the model can be quantized as an island{f' ({why})' if why else ''}: {error}"
        ) from error
    check_rules(request.recipe.rules, model, operations)
    _warn(model, found.islands, left, request.qat)
    return whole_of(model, copied, inputs, request, Islands(tuple(found.islands), {**left, "": error.reason}))


def prepare_island(
    model: nn.Module,
    path: str,
    part: nn.Module,
    inputs: tuple[Any, ...] | None,
    request: Request,
    prepare: PrepareGraph,
) -> GraphModule:
    """Return one part of a model prepared.

    Args:
        model: the whole; not modified.
        path: of the part.
        part: it, or a copy of it.
        inputs: what the part is called with, by position.
        request: for the whole.
        prepare: prepares a graph.
    """
    within = tuple((above, type(model.get_submodule(above))) for above in _paths_to(path))
    if ShapeTracer().is_leaf_module(part, path):
        shell = shell_of(path.rpartition(".")[2], part)
        within = within if shell is part else within[:-1]
        part = shell
    leaves = leaf_paths(model, request.leaf_modules)
    own = [glob.escape(leaf.removeprefix(f"{path}.")) for leaf in leaves if leaf.startswith(f"{path}.")]
    gm = prepare(part, inputs, replace(request, leaf_modules=own, within=within))
    for quantizer in gm.modules() if within else ():
        if isinstance(quantizer, TensorQuantizer) and quantizer.descriptor.name:
            name = f"{within[-1][0]}.{quantizer.descriptor.name}"
            quantizer._descriptor = quantizer.descriptor.replace(name=name)
    # Of the part that was copied nothing will be left.
    state = require_state(gm, Stage.PREPARED, "prepare")
    set_state(gm, replace(state, original=Original.of(model.get_submodule(path), gm)))
    return gm


def whole_of(
    model: nn.Module, copied: nn.Module, inputs: tuple[Any, ...], request: Request, islands: Islands
) -> GraphModule:
    """Return the graph module of the whole.

    Args:
        model: the user's.
        copied: a copy of it, with the islands in their places.
        inputs: on which it runs, by position.
        request: for the whole.
        islands: where they are.
    """
    gm = graph_around(copied, inputs)
    recipe = request.recipe
    settings = Settings(recipe.resolved_target, recipe.default, recipe.rules, recipe.calibrator, request.qat, inputs)
    original = Original.of(model, gm)
    state = State(
        Stage.PREPARED, recipe, settings, verify=request.verify, original=original,
        frontend=request.frontend, untraceable="islands", islands=islands,
    )  # fmt: skip
    compared = ComparedInputs((Inputs(inputs, {}),), original.prepared, is_original=True)
    set_state(gm, replace(state, compared=compared))
    return gm.eval()


def _paths_to(path: str) -> list[str]:
    """Return the paths of all modules around ``path``, and itself."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _warn(model: nn.Module, islands: Iterable[str], left: dict[str, str], qat: bool) -> None:
    """Name what never ran, and what training would move apart."""
    never = {path: why for path, why in left.items() if why.startswith(NEVER_RUNS)}
    if never:
        shown = ", ".join(f"{path!r} {why}" for path, why in list(never.items())[:_MOST_SHOWN])
        more = f", and {len(never) - _MOST_SHOWN} more" if len(never) > _MOST_SHOWN else ""
        warnings.warn(
            f"{shown}{more}: it stays in float. Give prepare() example_inputs for which it runs",
            stacklevel=levels_to_caller(),
        )
    owners: dict[int, dict[str, str]] = defaultdict(dict)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        island = next((island for island in islands if path.startswith(f"{island}.")), "")
        owners[id(parameter)].setdefault(island, path)
    shared = [list(found.values()) for found in owners.values() if len(found) > 1]
    if qat and shared:
        warnings.warn(
            f"tensors that the model uses in several places become one for each island, and training moves them apart: "
            f"{'; '.join(' is '.join(map(repr, paths)) for paths in shared[:_MOST_SHOWN])}",
            stacklevel=levels_to_caller(),
        )
