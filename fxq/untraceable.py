"""``prepare(untraceable="float")``: the smallest modules that do not trace stay whole, in float.

All modules that fail are found in one go and become leaves, and the model is traced again, until it works. A graph
that computes something else than the model names no module: then each part is tried as a leaf, from the top down.
"""

import glob
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar, get_args

from torch import nn
from torch.fx import GraphModule

from fxq.errors import FxqError, InputError, TraceError
from fxq.record import Entry, Record

Untraceable = Literal["error", "float", "islands"]
Traced = TypeVar("Traced")
_LISTS = (nn.ModuleList, nn.ModuleDict)


def check_untraceable(value: str) -> None:
    """Raise an InputError for a word that says nothing about what does not trace."""
    if value not in get_args(Untraceable):
        raise InputError(f"untraceable is one of {', '.join(map(repr, get_args(Untraceable)))}, got {value!r}")


def trace_around(
    model: nn.Module,
    trace: Callable[[Sequence[str]], Traced],
    find: Callable[[Sequence[str]], Mapping[str, str]],
    leaves: Sequence[str],
) -> tuple[Traced, Mapping[str, str]]:
    """Trace ``model`` around what does not trace.

    Args:
        model: the model.
        trace: traces and checks it, given globs of modules to keep whole.
        find: finds those that fail, by path, and why, given the same; it may miss some.
        leaves: globs of those that are kept anyway.

    Returns:
        What ``trace`` returned, and the modules that were kept whole for it: by path, why.

    Raises:
        TraceError: the model itself does not trace, or no module explains why its graph computes something else.
    """
    kept: dict[str, str] = {}
    while True:
        globs = [*leaves, *map(glob.escape, kept)]
        try:
            return trace(globs), kept
        except TraceError as error:
            path = _culprit(model, trace, globs) if error.path is None else error.path
            if path and path not in kept:
                kept = _outermost({**kept, path: error.reason, **find(globs)})
                continue
            while path in kept:  # whole, and still in the way
                path = path.rpartition(".")[0]
            if path is None:
                raise
            if not path:
                raise TraceError(
                    f'untraceable="float" keeps a submodule whole, and here it is the model itself: {error}', ""
                ) from error
            kept = _outermost({**kept, path: error.reason})


def note_kept(gm: GraphModule, record: Record, kept: Mapping[str, str], stacklevel: int) -> None:
    """Put on record, and warn, that modules were kept whole in float; ``kept`` says why, by path."""
    for node in gm.graph.nodes:
        if node.op == "call_module" and node.target in kept:
            text = f'kept whole in float (untraceable="float"): {kept[str(node.target)]}'
            record.add(Entry("trace", "skip", node.name, str(node.target), text))
    if kept:
        named = "; ".join(f"{path!r}: {why}" for path, why in kept.items())
        warnings.warn(f"kept whole in float, for it does not trace: {named}", stacklevel=stacklevel)


def _outermost(kept: Mapping[str, str]) -> dict[str, str]:
    return {path: why for path, why in kept.items() if not any(path.startswith(f"{other}.") for other in kept)}


def _culprit(model: nn.Module, trace: Callable[[Sequence[str]], Traced], globs: Sequence[str]) -> str | None:
    """Return the smallest module that cures the graph when it is kept whole, None where none does alone."""
    found: str | None = None
    inside = model
    while True:
        cure = next((path for path in _parts(inside, found or "") if _works(trace, [*globs, glob.escape(path)])), None)
        if cure is None:
            return found
        found, inside = cure, model.get_submodule(cure)


def _works(trace: Callable[[Sequence[str]], Traced], globs: Sequence[str]) -> bool:
    try:
        trace(globs)
    except FxqError:
        return False
    return True


def _parts(module: nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of the children that are traced through; of lists their items, since nobody calls a list."""
    for name, child in module.named_children():
        below = f"{path}.{name}".lstrip(".")
        if isinstance(child, _LISTS):
            yield from _parts(child, below)
        elif type(child) is nn.Sequential or not type(child).__module__.startswith("torch.nn."):
            yield below
