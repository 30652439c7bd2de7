"""Run the passes of a stage: one after the other, each checked, each held to its promise, all of it on record."""

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from torch.fx import GraphModule

from fxq.errors import FxqError, PassError
from fxq.graph.check import find_problems, idle_quantizers, summary
from fxq.graph.data_stage import DataStage
from fxq.graph.modules import drop_unused
from fxq.graph.rewriter import Rewriter
from fxq.graph.settings import Settings
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer
from fxq.number_check import NumberCheck
from fxq.passbase import Pass, describe_pass
from fxq.record import Record
from fxq.stage import Stage

logger = logging.getLogger(__name__)


def run_passes(  # noqa: PLR0913 - all that a run is made of
    gm: GraphModule,
    passes: Sequence[Pass],
    settings: Settings,
    record: Record,
    numbers: NumberCheck | None = None,
    complete: bool = True,
    data_stage: DataStage | None = None,
    is_sound: bool = False,
) -> None:
    """Run ``passes``, all of one stage, on ``gm`` in place.

    Args:
        gm: at the stage before the passes' own.
        passes: in order.
        settings: what the run was asked for.
        record: continued.
        numbers: holds the passes to their tolerance; None: nothing is run.
        complete: these are all passes of the stage, so that no rule of it may be broken in the end.
        data_stage: what passes of the stage CALIBRATED have beside the graph.
        is_sound: the stage before has just ended, with a look at the structure of the graph.

    Raises:
        PassError: a pass failed, left a graph that breaks its stage's rules, or moved the numbers further than its
            tolerance.
    """
    previous = record.passes[-1] if record.passes else "tracing"
    broken = set(find_problems(gm, passes[0].stage, settings.qat, is_sound)) if passes else set()
    idle = set(idle_quantizers(gm).values()) if passes and passes[0].stage <= Stage.PREPARED else None
    before = _structure(gm)
    for step in passes:
        had = _quantizing(gm) if step.stage in (Stage.CALIBRATED, Stage.FROZEN) else {}
        if numbers is not None:
            numbers.before(gm, step)
        start, entries = time.perf_counter(), len(record.entries)
        rw = Rewriter(gm, settings, record, step.name or type(step).__name__, data_stage, step.stage)
        _run(step, rw, previous)
        after = _structure(gm)
        is_same, before = after == before, after
        if not is_same or len(record.entries) > entries or step is passes[-1]:
            broken = _check(gm, step, settings, previous, broken)
            drop_unused(gm)
        if not is_same:
            gm.recompile()
        if idle is not None:
            idle = _check_none_idle(gm, step, idle)
        _check_still_quantizing(step, had, () if data_stage is None else data_stage.switched_off)
        if numbers is not None:
            numbers.after(gm, step, [entry.node for entry in record.entries[entries:] if entry.action == "edit"])
        changed = len(record.entries) - entries
        logger.debug("%s: %s, %d entries, %.2f s", step.stage, step.name, changed, time.perf_counter() - start)
        previous = step.name
        record.passes.append(step.name)
    if broken and complete:
        raise PassError(
            f"after {previous} the graph still breaks the rules of stage '{passes[0].stage}': "
            f"{summary(sorted(broken))}; the recipe lacks a pass that mends it"
        )


def check_stage_without_passes(gm: GraphModule, stage: Stage, passes: Sequence[Pass], qat: bool = False) -> None:
    """Refuse a graph that needs a pass of a stage for which the recipe has none; :func:`run_passes` checks the others.

    Raises:
        PassError: the graph breaks a rule of the stage.
    """
    problems = [] if passes else find_problems(gm, stage, qat)
    if problems:
        raise PassError(f"the recipe has no pass of stage '{stage}', whose rules the graph breaks: {summary(problems)}")


def _run(step: Pass, rw: Rewriter, previous: str) -> None:
    try:
        step.run(rw)
    except FxqError as error:
        error.add_note(f"raised by {describe_pass(step)}, run after {previous}")
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's pass may fail in any way, sys.exit too; say which pass it was
        if rw.has_failed_to_load(error):
            raise
        raise PassError(f"{describe_pass(step)} failed after {previous}: {type(error).__name__}: {error}") from error


def _check_none_idle(gm: GraphModule, step: Pass, before: set[TensorQuantizer]) -> set[TensorQuantizer]:
    """Refuse quantizers that a pass put in switched off: they would stay off, and what they stand for in float."""
    found = idle_quantizers(gm)
    idle = [path for path, quantizer in found.items() if quantizer not in before]
    if idle:
        raise PassError(
            f"{describe_pass(step)} puts in quantizers that are off and that nothing will switch on: {summary(idle)}. "
            'Plan them instead (rw.plan_inside(node, "weight", descriptor, why)): insert_quantizers makes what is '
            "planned. Or put them in switched on"
        )
    return set(found.values())


def _quantizing(gm: GraphModule) -> dict[str, tuple[TensorQuantizer, bool]]:
    """Return the quantizers that are on, by path, and whether they have a range."""
    found = {path: module for path, module in named_modules(gm) if isinstance(module, TensorQuantizer)}
    return {path: (one, one.has_range) for path, one in found.items() if one.is_enabled and one.is_quant_enabled}


def _check_still_quantizing(
    step: Pass, before: dict[str, tuple[TensorQuantizer, bool]], noted: Collection[str]
) -> None:
    """Refuse a pass that switches off what was planned, unless it was noted, or takes its range: nobody knows why."""
    is_on = {path: found.is_enabled and found.is_quant_enabled for path, (found, _) in before.items()}
    off = [path for path, on in is_on.items() if not on and path not in noted]
    if off:
        raise PassError(
            f"{describe_pass(step)} switches quantizers off: {summary(off)}. Leave in float what is not to be "
            "quantized while it is planned: by a rule of the recipe with None, or by rw.drop_plan. A pass with data "
            "says rw.leave_in_float(node, why)"
        )
    without = [path for path, (found, had) in before.items() if had and is_on[path] and not found.has_range]
    if without:
        raise PassError(
            f"{describe_pass(step)} takes the ranges of quantizers: {summary(without)}. Give them others "
            "(quantizer.amax = ..., or quantizer.range = (low, high)), or let the pass run before fit_ranges"
        )


def _check(gm: GraphModule, step: Pass, settings: Settings, previous: str, broken: set[str]) -> set[str]:
    """Blame ``step`` for the rules that were not broken before it; return those that are broken now."""
    problems = find_problems(gm, step.stage, settings.qat)
    new = [problem for problem in problems if problem not in broken]
    if new:
        raise PassError(
            f"{describe_pass(step)}, run after {previous}, breaks the rules of stage '{step.stage}': {summary(new)}"
        )
    return set(problems)


def _structure(gm: GraphModule) -> list[tuple[Any, ...]]:
    """Return what the code of a graph is generated from: generating it takes longer than most passes."""
    return [(node.op, node.name, node.target, node.args, node.kwargs) for node in gm.graph.nodes]
