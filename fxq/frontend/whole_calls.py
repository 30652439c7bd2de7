"""Calls of modules that stay whole while torch.export runs a model.

torch.export follows a model down to aten, and what a linear layer was is lost. So each module that a graph keeps as
one node calls an operator of our own meanwhile: one call, whatever the module does inside, with its tensors and sizes
as inputs. In the exported program it stands where the call of the module belongs. What the module does inside neither
unrolls (recurrent layers) nor narrows the sizes for which the program holds.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.utils import _pytree as pytree

from fxq.errors import TraceError
from fxq.graph.recurrent_results import recurrent_result
from fxq.graph.snapshot import evaluated

_NAMESPACE = "fxq_tracing"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


@dataclass
class WholeCall:
    """One call of a module.

    Args:
        path: of the module.
        arguments: positional and keyword arguments, flat; tensors and sizes left out.
        structure: of ``arguments``.
        results: what it returned, flat; tensors left out.
        result_structure: of ``results``.
    """

    path: str
    arguments: list[Any]
    structure: pytree.TreeSpec
    results: list[Any]
    result_structure: pytree.TreeSpec | None = None

    def with_values(self, tensors: Sequence[Any], sizes: Sequence[Any]) -> Any:
        """Return the positional and the keyword arguments, with these in the places of those left out."""
        values = {LeftOut.TENSOR: iter(tensors), LeftOut.SIZE: iter(sizes)}
        flat = [next(values[value]) if isinstance(value, LeftOut) else value for value in self.arguments]
        return pytree.tree_unflatten(flat, self.structure)


class LeftOut(enum.Enum):
    """Stands for the next tensor, or the next size, in a flat list."""

    TENSOR = enum.auto()
    SIZE = enum.auto()


class WholeCalls:
    """Makes the modules of a model that are to stay whole call one operator each.

    Args:
        model: what will be exported.
        is_whole: asked for each module and its path.
    """

    def __init__(self, model: nn.Module, is_whole: Callable[[nn.Module, str], bool]) -> None:
        # One that overrides __call__ is traced through: what it does there would run again around the node.
        self._whole = {
            path: module
            for path, module in model.named_modules()
            if path and is_whole(module, path) and type(module).__call__ is nn.Module.__call__
        }
        self._forwards = {path: vars(module).get("forward") for path, module in self._whole.items()}
        self._hooks = {path: {name: vars(module)[name] for name in _HOOKS} for path, module in self._whole.items()}
        self._running = False
        self.calls: list[WholeCall] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Replace the forwards, which the modules have again afterwards."""
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
        try:
            library.define("whole(Tensor[] tensors, SymInt[] sizes, int call) -> Tensor[]")  # type: ignore[no-untyped-call]
            torch.library.register_fake(f"{_NAMESPACE}::whole", self._results, lib=library)
            for path in self._whole:
                self._replace(path)
            yield
        finally:
            for path in self._whole:
                self._restore(path)
            library._destroy()  # type: ignore[no-untyped-call]

    def made(self, target: Any) -> bool:
        """Return whether ``target`` is the operator of such a call."""
        return str(getattr(target, "_schema", "")).startswith(f"{_NAMESPACE}::whole(")

    def _replace(self, path: str) -> None:
        module = self._whole[path]
        for name in _HOOKS:  # they belong to the call
            vars(module)[name] = type(vars(module)[name])()

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(path, args, kwargs)

        module.forward = forward

    def _restore(self, path: str) -> None:
        module = self._whole[path]
        vars(module).update(self._hooks[path])
        vars(module).pop("forward", None)
        if self._forwards[path] is not None:
            module.forward = self._forwards[path]

    def _call(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:  # inside another one
            return self._run(path, args, kwargs)
        flat, structure = pytree.tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        sizes = [value for value in flat if isinstance(value, SymInt)]
        left = [_without_values(value) for value in flat]
        self.calls.append(WholeCall(path, left, structure, []))
        call = self.calls[-1]
        found = iter(getattr(torch.ops, _NAMESPACE).whole(tensors, sizes, len(self.calls) - 1))
        assert call.result_structure is not None
        results = [next(found) if value is LeftOut.TENSOR else value for value in call.results]
        return pytree.tree_unflatten(results, call.result_structure)

    def _results(self, tensors: list[Tensor], sizes: list[Any], call: int) -> list[Tensor]:
        """Return what a call returns for fake tensors, in memory of its own."""
        recorded = self.calls[call]
        args, kwargs = recorded.with_values(tensors, sizes)
        result = self._run(recorded.path, args, kwargs)
        leaves, recorded.result_structure = pytree.tree_flatten(result)
        recorded.results = [_without_values(leaf) for leaf in leaves]
        if any(isinstance(leaf, SymInt) for leaf in leaves):
            raise TraceError(f"module '{recorded.path}' stays whole and returns a size, which torch.export cannot hold")
        memory = {_memory(tensor) for tensor in tensors}
        outputs: list[Tensor] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                outputs.append(leaf.clone() if _memory(leaf) in memory else leaf)
                memory.add(_memory(leaf))
        return outputs

    def _run(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, outermost = self._whole[path], not self._running
        self._running = True
        self._restore(path)
        try:
            known = recurrent_result(module, args, kwargs)
            if known is not None:
                return known
            with evaluated(module):  # batch norm refuses to train on one sample
                return module(*args, **kwargs)
        finally:
            self._replace(path)
            self._running = not outermost


def _without_values(value: Any) -> Any:
    return LeftOut.TENSOR if isinstance(value, Tensor) else LeftOut.SIZE if isinstance(value, SymInt) else value


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
