"""Run the passes of a stage: one after the other, each checked, each held to its promise, all of it on record."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq.errors import FxqError, PassError
from fxq.graph.check import find_problems, idle_quantizers, summary
from fxq.graph.modules import call, drop_unused
from fxq.graph.rewriter import Rewriter
from fxq.graph.settings import Settings
from fxq.nn import TensorQuantizer
from fxq.passbase import Pass
from fxq.record import Record
from fxq.stage import Stage


def run_passes(
    gm: GraphModule,
    passes: Sequence[Pass],
    settings: Settings,
    record: Record,
    verify: bool = False,
    complete: bool = True,
) -> None:
    """Run ``passes``, all of one stage, on ``gm`` in place.

    Args:
        gm: at the stage before the passes' own.
        passes: in order.
        settings: what the run was asked for.
        record: the diary, continued.
        verify: run the graph on the example inputs before and after each pass that preserves numbers.
        complete: these are all passes of the stage, so that no rule of it may be broken in the end.

    Raises:
        PassError: a pass failed, left a graph that breaks its stage's rules, or changed numbers it promised to keep.
    """
    previous = record.passes[-1] if record.passes else "tracing"
    outputs = _outputs(gm, settings) if verify and passes else None
    broken = set(find_problems(gm, passes[0].stage, settings.qat)) if passes else set()
    for step in passes:
        idle = set(idle_quantizers(gm).values()) if step.stage <= Stage.PREPARED else None
        before = _structure(gm)
        _run(gm, step, settings, record, previous)
        broken = _check(gm, step, settings, previous, broken)
        drop_unused(gm)
        if _structure(gm) != before:
            gm.recompile()
        if idle is not None:
            _check_none_idle(gm, step, idle)
        if outputs is not None:
            after = _outputs(gm, settings)
            if step.preserves_numbers:
                _compare(outputs, after, step, previous)
            outputs = after
        previous = step.name
        record.passes.append(step.name)
    if broken and complete:
        raise PassError(
            f"after {previous} the graph still breaks the rules of stage '{passes[0].stage}': "
            f"{summary(sorted(broken))}; the recipe lacks a pass that mends it"
        )


def _run(gm: GraphModule, step: Pass, settings: Settings, record: Record, previous: str) -> None:
    try:
        step.run(Rewriter(gm, settings, record, step.name or type(step).__name__))
    except FxqError as error:
        error.add_note(f"raised by {_described(step)}, run after {previous}")
        raise
    except Exception as error:  # a user's pass may fail in any way; say which pass it was
        raise PassError(f"{_described(step)} failed after {previous}: {type(error).__name__}: {error}") from error


def _check_none_idle(gm: GraphModule, step: Pass, before: set[TensorQuantizer]) -> None:
    """Refuse quantizers that a pass put in switched off: they would stay off, and what they stand for in float."""
    idle = [path for path, quantizer in idle_quantizers(gm).items() if quantizer not in before]
    if idle:
        raise PassError(
            f"{_described(step)} puts in quantizers that are off and that nothing will switch on: {summary(idle)}. "
            'Plan them instead (rw.plan_inside(node, "weight", descriptor, why)): insert_quantizers makes what is '
            "planned. Or put them in switched on"
        )


def _check(gm: GraphModule, step: Pass, settings: Settings, previous: str, broken: set[str]) -> set[str]:
    """Blame ``step`` for the rules that were not broken before it; return those that are broken now."""
    problems = find_problems(gm, step.stage, settings.qat)
    new = [problem for problem in problems if problem not in broken]
    if new:
        raise PassError(
            f"{_described(step)}, run after {previous}, breaks the rules of stage '{step.stage}': {summary(new)}"
        )
    return set(problems)


def _structure(gm: GraphModule) -> list[tuple[Any, ...]]:
    """Return what the code of a graph is generated from: generating it takes longer than most passes."""
    return [(node.op, node.name, node.target, node.args, node.kwargs) for node in gm.graph.nodes]


def _outputs(gm: GraphModule, settings: Settings) -> list[Tensor]:
    if settings.example_inputs is None:
        raise PassError("verify=True runs the model before and after each pass: give prepare() example_inputs")
    gm.recompile()
    # A model may write into its inputs, which are the user's.
    inputs = pytree.tree_map_only(Tensor, torch.clone, settings.example_inputs)
    with torch.no_grad():
        flat: list[Any] = pytree.tree_leaves(call(gm, *inputs))
    return [value for value in flat if isinstance(value, Tensor)]


def _compare(before: list[Tensor], after: list[Tensor], step: Pass, previous: str) -> None:
    if len(before) != len(after):
        raise PassError(f"{_described(step)}, run after {previous}, changed the number of outputs")
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise PassError(
                f"{_described(step)}, run after {previous}, changed output {index} from {old.dtype} {tuple(old.shape)} "
                f"to {new.dtype} {tuple(new.shape)}"
            )
        error, largest = _largest_difference(old, new)
        if not error <= _relative_tolerance(old.dtype) * max(largest, 1e-6):
            raise PassError(
                f"{_described(step)}, run after {previous}, changed output {index} by up to {error:.3g} "
                f"(largest value {largest:.3g}), though it promises to keep the numbers; "
                "mend it, or declare preserves_numbers = False"
            )


def _largest_difference(old: Tensor, new: Tensor) -> tuple[float, float]:
    """Return the largest difference and the largest finite magnitude; infinities and NaN are equal to themselves."""
    if not old.numel():
        return 0.0, 0.0
    first, second = old.double(), new.double()
    same = (first == second) | (first.isnan() & second.isnan())
    error = torch.where(same, 0.0, (first - second).abs()).max()
    return float(error), float(torch.nan_to_num(first, 0.0, 0.0, 0.0).abs().max())


def _relative_tolerance(dtype: torch.dtype) -> float:
    """Folding reorders sums, and rounds a half-precision weight again; what is not merely that is off by far more."""
    return max(1e-4, 16 * torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def _described(step: Pass) -> str:
    module = type(step).__module__
    return f"pass {step.name or type(step).__name__!r} ({module}.{type(step).__qualname__})"
