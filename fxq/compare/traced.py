"""Does the traced graph compute what the model computes? Tracing follows the model's Python, which can mislead it.

What tracing cannot see is left out without a word: an ``x is True`` of a proxy, a number from outside that was burned
in. So both run once on the example inputs.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq.compare.outputs import Named, named_outputs, run_once
from fxq.compare.parity import compare, is_rounding
from fxq.compare.random_values import are_equal, lines_of_chance
from fxq.errors import InputError, TraceError
from fxq.graph.trace_failure import describe
from fxq.module_tree import named_modules, named_tensors
from fxq.process_lock import PROCESS_LOCK

_MOST_SHOWN = 5


@dataclass(frozen=True)
class Checked:
    """What is known of a model that was run.

    Args:
        has_numbers: there are numbers to compare: there are none on the meta device.
        chance: the lines that draw random numbers, where these change the outputs.
        kept: the attributes that a call leaves changed, where the next one returns something else for that.
    """

    has_numbers: bool
    chance: str | None = None
    kept: tuple[str, ...] = ()


def check_traced(model: nn.Module, gm: GraphModule, inputs: tuple[Any, ...]) -> Checked:
    """Compare ``gm`` with ``model``, which it was traced from, on ``inputs``; neither is changed.

    Raises:
        TraceError: they return different numbers, or different tensors.
        InputError: the model does not run on the inputs.
    """
    tensors = [*(tensor for _, tensor in named_tensors(model)), *pytree.tree_leaves(inputs)]
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors):
        return Checked(has_numbers=False)
    with PROCESS_LOCK, plain_transformers():
        with _explained(model, model, inputs):
            expected, has_drawn, kept, _ = run_once(model, inputs)
        chance = lines_of_chance(model, inputs, expected) if has_drawn else None
        if has_drawn:
            kept = ()  # what differs may do so for that
        elif kept:
            with _explained(model, model, inputs):
                again = run_once(model, inputs, times=2).outputs
            kept = () if are_equal(expected, again) else kept
        with _explained(gm, model, inputs):
            found = named_outputs(gm, inputs)
    for name, value in expected:
        if value.layout is not torch.strided:
            raise TraceError(
                f"the model returns {name!r} as a tensor of layout {value.layout}, which no file holds and no "
                "comparison takes: return a dense one, y.to_dense()"
            )
    if [name for name, _ in expected] != [name for name, _ in found]:
        raise _misled(model, f"returns {_names(found)} where the model returns {_names(expected)}")
    for (name, want), (_, have) in zip(expected, found, strict=True):
        if isinstance(have, FakeTensor):
            raise _misled(model, f"returns {name!r} from tracing, where a hook or an attribute kept it between calls")
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            raise _misled(
                model,
                f"returns {name!r} as {have.dtype} {tuple(have.shape)}, and the model {want.dtype} {tuple(want.shape)}",
            )
        error = compare(name, want, have, step=1.0).max_abs
        if not is_rounding(error, want):
            raise _misled(model, f"computes another {name!r}: it differs from the model's by up to {error:.3g}")
    return Checked(has_numbers=True, chance=chance, kept=kept)


def buffers_left(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the buffers that a call leaves changed, where the next one returns something else for that."""
    first = run_once(model, inputs)
    if not first.buffers or are_equal(first.outputs, run_once(model, inputs, times=2).outputs):
        return ()
    return first.buffers


@contextlib.contextmanager
def _explained(running: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Say of what ``running``, the model or its graph, raises which of the two it was, and what it got."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the model's own code ran: it may raise anything
        reason = f"{type(error).__name__}: {error}"
        if running is model:
            raise InputError(
                f"the model ({type(model).__name__}) fails on the example inputs: {reason}; it got "
                f"({describe(inputs)}): pass example_inputs for which model(*example_inputs) runs"
            ) from error
        raise _misled(model, f"fails where the model runs: {reason}") from error


@contextlib.contextmanager
def plain_transformers() -> Iterator[None]:
    """Keep torch.nn's transformers from their fused kernel, which rounds in another order and zeroes padded positions.

    The graph holds what the layers define (fxq/graph/trace_transformer.py), and so must what it is compared with.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _misled(model: nn.Module, what: str) -> TraceError:
    hooked = [path for path, module in named_modules(model) if module._forward_hooks or module._forward_pre_hooks]
    hooks = f" (forward hooks: {', '.join(hooked[:_MOST_SHOWN])})" if hooked else ""
    failed = f"the graph traced from the model ({type(model).__name__}) {what}"
    return TraceError(
        f"{failed}. Something in its Python was left out: a forward hook of a module that was traced through{hooks}, "
        "or a test such as `x is True`, which is another one while tracing. Remove it, or name the module that holds "
        'it in recipe.replace(leaf_modules=(...,)); it is then left in float; untraceable="float" looks for it',
        reason=failed,
    )


def _names(outputs: Named) -> str:
    return ", ".join(name for name, _ in outputs) or "no tensor"
