"""The search of auto_quantize: rank, find the smallest prefix, prune, convert; and what is known when it ends early."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule

from fxq.api import convert, prepare
from fxq.auto_asked import Asked
from fxq.auto_metric import KeptMetric, UnfitMetricError
from fxq.auto_report import Attempt, AutoQuantized
from fxq.batches import Inputs
from fxq.calibration import calibrate, needs_data
from fxq.data import Data
from fxq.errors import MetricError
from fxq.graph.groups import Group, find_groups, is_left_in_float
from fxq.graph.modules import copy_graph
from fxq.graph.multiplications import count_multiplications
from fxq.graph.switchboard import Switchboard
from fxq.metric import measured
from fxq.progress import Say
from fxq.recipe import Recipe
from fxq.sensitivity import check_one_graph, make_switchboard, measure_groups, read_samples
from fxq.stage import Stage
from fxq.state import require_state

_RANKED_SAMPLES, _FEW_SAMPLES = 16, 8
_NEEDED_IN_A_ROW = 16  # of groups that cost less and less, so that to go on gains little
_ASIDE = 1.25  # times the seconds that a first conversion took: what is kept of the budget for the last one


@dataclass(frozen=True)
class _Built:
    """A model that was prepared, calibrated, converted and measured: all that the result tells of it."""

    in_float: tuple[tuple[str, ...], ...]
    recipe: Recipe
    prepared: GraphModule
    converted: GraphModule
    value: float
    int8_share: float


class _OutOfTimeError(Exception):
    """The budget is used up, but for what the last conversion takes."""


class Search:
    """One search.

    Args:
        asked: what for.
        say: shows what is known so far.
    """

    def __init__(self, asked: Asked, say: Say) -> None:
        self._asked, self._say = asked, say
        self._start = time.perf_counter()
        self._metric = KeptMetric(asked.metric, asked.model, asked.max_drop)
        self._quantized_value = math.nan
        self._build_s = 0.0
        self._groups = 0
        self._chosen: list[Group] = []  # to be left in float
        self._is_promise = False  # the switched model keeps the metric with them, and is not converted yet
        self._best: _Built | None = None
        self._one: Inputs | None = None
        self._attempts: list[Attempt] = []
        self._asides: list[str] = []  # how it was searched, whatever was reached
        self._notes: list[str] = []

    def run(self) -> AutoQuantized:
        """Return the best model that was found; errors as of ``auto_quantize``."""
        self._say("the float model")
        self._metric.measure_float()
        try:
            first = self._build([])
            self._quantized_value, self._build_s = first.value, self._seconds
            if self._groups and first.value == self._metric.float_value:
                self._metric.check_depends_on_model(first.prepared)
            if abs(first.value - self._metric.float_value) > self._asked.max_drop:
                self._metric.check_says_the_same_again()
            if not self._metric.is_kept(first.value):
                self._leave_some_in_float(first.prepared)
        except UnfitMetricError:
            raise
        except (KeyboardInterrupt, MetricError) as error:
            if self._best is None:
                raise
            self._end_early(error)
        return self._result()

    def _end_early(self, error: BaseException) -> None:
        why = str(error) if isinstance(error, MetricError) else "interrupted"
        note = f"{why}: this is the best converted model by then"
        if self._is_promise:
            found = ", ".join(path for group in self._chosen for path in group.paths)
            note += f"; not converted yet, with these in float the metric was kept: {found}"
        self._notes.append(note)

    def _leave_some_in_float(self, prepared: GraphModule) -> None:
        board = make_switchboard(prepared)
        limit = self._asked.limit(len(board.groups))
        if limit == 0:
            why = "max_float allows none" if board.groups else "nothing was quantized"
            self._notes.append(f"there is nothing to leave in float ({why})")
            return
        ranked: list[Group] = []
        try:
            ranked = self._ranked(board, prepared)
            self._choose(board, ranked, limit)
        except _OutOfTimeError:
            what = "fewer groups in float might do" if self._chosen else "nothing kept the metric by then"
            self._notes.append(f"the budget of {self._asked.budget_s:g} s ended the search: {what}")
        if self._chosen:
            self._convert(self._chosen, ranked, limit)

    def _ranked(self, board: Switchboard, prepared: GraphModule) -> list[Group]:
        """Return the groups, first those that bring most noise to the outputs when they alone are quantized.

        Not those that are worth most alone in float: among much other noise that says little (MobileNetV2).
        """
        data = self._asked.data
        few = Data(data.batches, data.forward, min(_RANKED_SAMPLES, data.max_samples), 0, progress=False, share=False)
        samples = read_samples(prepared, few)

        def before_each(index: int) -> None:
            self._keep_time()
            self._say(f"ranking group {index + 1} of {len(board.groups)}; {self._known}")

        try:
            found = measure_groups(board, samples, None, "one_quantized", before_each)
        except MetricError as error:
            self._asides.append(f"groups were ranked by the metric, which takes longer: {error.args[0]}")
            found = measure_groups(board, samples, self._metric.metric, "one_quantized", before_each)
        if found.samples < _FEW_SAMPLES:
            self._asides.append(f"groups were ranked on {found.samples} samples, which says little")
        by_path = {group.path: group for group in board.groups}
        return [by_path[one.path] for one in found.worst(len(found))]

    def _choose(self, board: Switchboard, ranked: Sequence[Group], limit: int) -> None:
        """Find what to leave in float, and note it whenever it is better: first what keeps the metric, then fewer."""
        low, high = 0, 1
        while not self._metric.is_kept(self._switched(board, ranked[:high])):
            if high == limit:
                self._give_up(len(ranked), limit)
                self._chosen = list(ranked[:high])
                return
            low, high = high, min(2 * high, limit)
        self._chosen, self._is_promise = list(ranked[:high]), True
        while high - low > 1:
            middle = (low + high) // 2
            if self._metric.is_kept(self._switched(board, ranked[:middle])):
                high = middle
                self._chosen = list(ranked[:high])
            else:
                low = middle
        self._prune(board)

    def _prune(self, board: Switchboard) -> None:
        """Let go back to integers what is not needed: more and more at once for as long as that holds.

        From turn to turn the metric is kept with ``_chosen`` in float, and what left ``waiting`` either went back or is
        needed.
        """
        board.leave_in_float([])
        counted = count_multiplications(board.gm, self._sample(board.gm))
        cost = {group: sum(counted.get(node, 0) for node in group.nodes) for group in board.groups}
        # The last one is needed: without it, it was tried.
        waiting = sorted(self._chosen[:-1], key=cost.__getitem__, reverse=True)
        step, failing, needed = 1, 0, 0  # failing: so many of the first cannot all go back
        while waiting and needed < _NEEDED_IN_A_ROW:
            tried = waiting[: failing // 2 or step]
            fewer = [group for group in self._chosen if group not in tried]
            if self._metric.is_kept(self._switched(board, fewer)):
                self._chosen, waiting, failing = fewer, waiting[len(tried) :], max(failing - len(tried), 0)
                step, needed = 1 if needed else 2 * step, 0
            else:
                failing = len(tried)
            if failing == 1:
                waiting, step, failing, needed = waiting[1:], 1, 0, needed + 1
        if waiting:
            self._asides.append(
                f"{len(waiting)} of the groups in float were not tried in integers one by one: {needed} others that "
                "multiply more were all needed"
            )

    def _convert(self, chosen: list[Group], ranked: Sequence[Group], limit: int) -> None:
        """Convert with ``chosen`` in float, and more where the converted model falls short."""
        more, step = [group for group in ranked if group not in chosen], 1
        while True:
            value = self._build(chosen).value
            self._is_promise = False
            if self._metric.is_kept(value):
                return
            added = more[: min(step, limit - len(chosen))]
            out_of_time = self._asked.budget_s is not None and self._seconds + self._build_s > self._asked.budget_s
            if not added or out_of_time:
                return
            chosen, more, step = [*chosen, *added], more[len(added) :], 2 * step

    def _build(self, groups: Sequence[Group]) -> _Built:
        """Prepare, calibrate, convert and measure with ``groups`` in float; keep it where it is the best."""
        asked = self._asked
        self._say(f"converting with {len(groups)} groups in float; {self._known}")
        paths = tuple(group.paths for group in groups)
        recipe = asked.recipe.with_rules(*((path, None) for one in paths for path in one))
        prepared = prepare(asked.model, asked.example_inputs, recipe)
        check_one_graph(prepared)
        if needs_data(prepared):
            report = calibrate(prepared, asked.data, progress=False, unjudged=asked.unjudged)
            recipe = asked.as_run(recipe, report)
        converted = convert(prepared, min_sqnr_db=-math.inf)  # it is the metric that judges here
        what = f"the converted model with {len(groups)} groups in float"
        value = self._measured(converted, what, len(groups), True)
        built = _Built(paths, recipe, prepared, converted, value, self._int8_share(prepared))
        if self._best is None or self._rank(built) > self._rank(self._best):
            self._best = built
        if not groups:
            self._groups = len(find_groups(prepared, require_state(prepared, Stage.PREPARED, "").settings.target))
        return built

    def _switched(self, board: Switchboard, groups: Sequence[Group]) -> float:
        self._keep_time()
        self._say(f"trying {len(groups)} of {len(board.groups)} groups in float; {self._known}")
        board.leave_in_float(groups)
        return self._measured(board.gm, f"the model with {len(groups)} groups in float", len(groups), False)

    def _measured(self, model: nn.Module, what: str, groups: int, is_converted: bool) -> float:
        value = measured(self._metric.metric, model, what)
        self._attempts.append(Attempt(groups, value, is_converted, self._seconds))
        return value

    def _rank(self, built: _Built) -> tuple[bool, float, float]:
        """Return what is larger for a better model: one that holds with fewer groups in float, else a higher metric."""
        holds = self._metric.is_kept(built.value)
        return holds, -len(built.in_float) if holds else built.value, built.value

    def _keep_time(self) -> None:
        budget = self._asked.budget_s
        if budget is not None and self._seconds + _ASIDE * self._build_s > budget:
            raise _OutOfTimeError

    def _give_up(self, groups: int, limit: int) -> None:
        if limit < groups:
            self._notes.append(
                f"max_float allows {limit} of {groups} groups in float, which does not keep the metric: the noisiest "
                "are in float"
            )
            return
        self._metric.refuse_in_float(self._attempts[-1].value)

    def _result(self) -> AutoQuantized:
        assert self._best is not None
        best = self._best
        if not self._metric.is_kept(best.value) and not self._notes:
            self._notes.append("no converted model kept the metric: this is the one that comes nearest")
        return AutoQuantized(
            best.converted, best.recipe, best.in_float, best.value, self._metric.float_value, self._quantized_value,
            self._asked.max_drop, self._groups, best.int8_share, tuple(self._attempts),
            (*self._asides, *self._notes), self._seconds,
        )  # fmt: skip

    def _int8_share(self, prepared: GraphModule) -> float:
        gm = copy_graph(prepared).eval()
        counted = count_multiplications(gm, self._sample(gm))
        groups = find_groups(gm, require_state(prepared, Stage.PREPARED, "").settings.target)
        groups = [group for group in groups if not is_left_in_float(group)]
        quantized = sum(counted.get(node, 0) for group in groups for node in group.nodes)
        return quantized / sum(counted.values()) if any(counted.values()) else 0.0

    def _sample(self, gm: GraphModule) -> Inputs:
        """Return one sample; read once, for a loader may take its time."""
        if self._one is None:
            data = self._asked.data
            self._one = read_samples(gm, Data(data.batches, data.forward, 1, 0, progress=False, share=False))[0]
        return self._one

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def _known(self) -> str:
        known = f"float {self._metric.float_value:.4g}"
        if self._best is None:
            return known
        return f"{known}, all quantized {self._quantized_value:.4g}, best {self._best.value:.4g}"
