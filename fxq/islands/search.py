"""Find the largest parts of a model that can be prepared on their own, from the top down."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.batches import Inputs
from fxq.compare.outputs import Named, named_leaves
from fxq.compare.parity import compare, is_rounding
from fxq.compare.quality import sqnr_db
from fxq.errors import InputError, TraceError
from fxq.graph.float_model import in_float
from fxq.graph.trace_failure import has_layers
from fxq.islands.calls import count_calls, record_calls, run_alike
from fxq.islands.layout import put_in_place
from fxq.nn import TensorQuantizer

logger = logging.getLogger(__name__)

Prepare = Callable[[str, nn.Module, Inputs], GraphModule]
NEVER_RUNS = "never runs on the example inputs"
_NOISE_DB = 60.0


@dataclass
class Found:
    """What the search found: prepared parts by path, and why others were left, by path."""

    islands: dict[str, GraphModule] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def find_islands(model: nn.Module, inputs: Inputs, prepare: Prepare, skipped: frozenset[str], qat: bool) -> Found:
    """Return the largest parts of ``model`` that ``prepare`` takes, each put in its place in ``model``.

    Args:
        model: a copy of the user's, in eval mode; modified.
        inputs: on which it runs.
        prepare: takes the path of a part, the part and a call of it.
        skipped: paths of parts that shall stay whole, in float.
        qat: the model will be trained: its Python may then call other methods of a part than forward.
    """
    found, counts = Found(), count_calls(model, inputs)
    first = {id(module): path for path, module in model.named_modules()}
    waiting = list(_children(model, ""))
    while waiting:
        candidates: dict[str, nn.Module] = {}
        entered: list[tuple[str, nn.Module]] = []
        for path, module in waiting:
            if first.get(id(module)) != path:  # known by another path, or an island
                continue
            if path in skipped:
                found.left[path] = "is named in leaf_modules"
            elif not _runs(path, module, counts):
                found.left[path] = NEVER_RUNS
            elif not counts[path] or (qat and _has_other_methods(module) and list(module.children())):
                entered.append((path, module))
            else:
                candidates[path] = module
        reasons = _try(model, inputs, candidates, prepare, found)
        for path, reason in reasons.items():
            parts = list(_children(candidates[path], path))
            logger.debug("%s is no island: %s", path, reason)
            if not parts:
                found.left[path] = reason
            entered.append((path, candidates[path]))
        waiting = [part for path, module in entered for part in _children(module, path)]
    return found


def _try(
    model: nn.Module, inputs: Inputs, candidates: Mapping[str, nn.Module], prepare: Prepare, found: Found
) -> dict[str, str]:
    """Prepare what can be of ``candidates`` and put it in place; return why not, by path."""
    reasons = _read_by_others(model, inputs, candidates)
    rest = {path: module for path, module in candidates.items() if path not in reasons}
    for path, calls in record_calls(model, rest, [inputs]).items():
        if not calls:
            found.left[path] = f"{NEVER_RUNS} with anything in it: all its inputs are empty"
            continue
        try:
            gm = prepare(path, rest[path], calls[0])
            _check_alike(path, rest[path], gm, calls)
        except (TraceError, InputError) as error:
            reasons[path] = error.reason if isinstance(error, TraceError) else str(error)
            continue
        if any(isinstance(part, TensorQuantizer) and part.is_enabled for part in gm.modules()):
            found.islands[path] = gm
            put_in_place(model, rest[path], gm)
        else:
            found.left[path] = "the recipe quantizes nothing in it"
    return reasons


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield what may have something to quantize."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name, child in module.named_children():
        if next(child.parameters(), None) is not None and not isinstance(child, torch.jit.ScriptModule):
            yield f"{path}.{name}".lstrip("."), child


def _runs(path: str, module: nn.Module, counts: Mapping[str, int]) -> bool:
    return any(counts[f"{path}.{name}".rstrip(".")] for name, _ in module.named_modules())


def _has_other_methods(module: nn.Module) -> bool:
    """Return whether the class of ``module`` has methods of its own that others may call, such as ``compute_loss``."""
    functions = inspect.getmembers(type(module), inspect.isfunction)
    own = {name for name, value in functions if not value.__module__.startswith("torch.")}
    return any(not name.startswith("_") for name in own - {*dir(nn.Module), "reset_parameters", "init_weights"})


class _StandIn(nn.Module):
    """Computes what a module does, and has nothing else of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module,)  # not registered

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._held[0](*args, **kwargs)


def _read_by_others(model: nn.Module, inputs: Inputs, candidates: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return of which parts the model's Python reads more than their call, and how that shows, by path."""
    expected = named_leaves(run_alike(model, inputs), "output", Tensor)
    if not candidates or _why_changed(model, inputs, expected, candidates) is None:
        return {}
    if _why_changed(model, inputs, expected, {}) is not None:  # never the same twice
        return {}
    alone = {path: _why_changed(model, inputs, expected, {path: module}) for path, module in candidates.items()}
    return {path: f"the model reads more of it than its call: {why}" for path, why in alone.items() if why is not None}


def _why_changed(model: nn.Module, inputs: Inputs, expected: Named, parts: Mapping[str, nn.Module]) -> str | None:
    """Return what changes where others compute the same in the place of ``parts``; None where nothing does."""
    stand_ins = [(module, _StandIn(module)) for module in parts.values()]
    with contextlib.ExitStack() as stack:
        for module, stand_in in stand_ins:
            put_in_place(model, module, stand_in)
            stack.callback(put_in_place, model, stand_in, module)
        try:
            outputs = named_leaves(run_alike(model, inputs), "output", Tensor)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the model's own code runs: it may raise anything
            return f"without, {type(error).__name__}: {error}"
    same = [name for name, _ in outputs] == [name for name, _ in expected] and all(
        torch.equal(torch.nan_to_num(have), torch.nan_to_num(want))
        for (_, have), (_, want) in zip(outputs, expected, strict=True)
    )
    return None if same else "without, it returns something else"


def _check_alike(path: str, module: nn.Module, gm: GraphModule, calls: list[Inputs]) -> None:
    """Raise a TraceError where the float graph of a part computes something else than the part, in any call of it."""
    for index, call in enumerate(calls):
        expected = named_leaves(run_alike(module, call), "output", Tensor)
        try:
            with in_float(gm):
                found = named_leaves(run_alike(gm, call), "output", Tensor)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _unlike(path, index, f"{type(error).__name__}: {error}") from error
        if [(name, value.shape) for name, value in expected] != [(name, value.shape) for name, value in found]:
            raise _unlike(path, index, "it returns other tensors")
        for (name, want), (_, have) in zip(expected, found, strict=True):
            # Deep models add up what folding batch norms rounds.
            decibel = sqnr_db([want], [have])
            is_noise = decibel is not None and decibel >= _NOISE_DB
            if not (is_noise or is_rounding(compare(name, want, have, step=1.0).max_abs, want)):
                raise _unlike(path, index, f"it computes another {name!r}")


def _unlike(path: str, index: int, what: str) -> TraceError:
    return TraceError(f"the graph of {path!r} does not do for call {index + 1} of it in the model: {what}", path)


def left_layers(left: Mapping[str, str], model: nn.Module) -> dict[str, str]:
    """Return the reasons for parts that have layers."""
    return {path: why for path, why in left.items() if has_layers(model.get_submodule(path))}
