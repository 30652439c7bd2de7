"""sensitivity: what each group of operations costs, quantized alone or alone in float."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.api import prepare
from fxq.batches import Forward, Inputs, first_inputs
from fxq.calibration import calibrate, needs_data
from fxq.data import Data
from fxq.distributed import Team, team_of_now, telling
from fxq.errors import InputError, StageError
from fxq.given_model import as_module
from fxq.graph.groups import Group
from fxq.graph.modules import copy_graph
from fxq.graph.multiplications import count_multiplications
from fxq.graph.observers import check_calibrated
from fxq.graph.stored import fit_weights
from fxq.graph.switchboard import Switchboard
from fxq.metric import Metric, check_metric, measured
from fxq.progress import saying
from fxq.recipe import Recipe, recipe_at
from fxq.sensitivity_judge import SqnrJudge
from fxq.sensitivity_report import GroupSensitivity, Sensitivity
from fxq.stage import Stage
from fxq.state import State, find_state, require_state
from fxq.surroundings import in_plain_surroundings

Mode = Literal["one_quantized", "one_float"]
MODES = ("one_quantized", "one_float")


@in_plain_surroundings
def sensitivity(  # noqa: PLR0913 - a model, data, and how to judge
    model: nn.Module,
    batches: Iterable[Any] | Data,
    metric: Metric | None = None,
    mode: Mode = "one_quantized",
    recipe: str | Recipe = "tensorrt",
    forward: Forward | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measure the model with one group of operations quantized, or all but one, for each group in turn.

    A group is what fuses: a convolution with the residual add that it absorbs, all calls of one module. The model is
    calibrated once, and its quantizers are switched: it takes one run of the kept samples (or of the metric) for each
    group. Several processes (torchrun), which all call this, share the groups out; with a metric each measures all.
    Ctrl-C returns the groups measured by then, with a note; before the first it is a KeyboardInterrupt as ever.

    Args:
        model: a float model, which is prepared by ``recipe`` and calibrated on ``batches``; or a calibrated one from
            ``fxq.prepare``. Not modified.
        batches: as of ``fxq.calibrate``; at most 64 samples are kept to measure on (``fxq.Data(max_samples=)``).
        metric: ``metric(model) -> float``, higher is better; None for the SQNR of the worst output against the float
            model, in dB.
        mode: "one_quantized": all else in float, what each group costs by itself; "one_float": all else quantized, what
            leaving it in float gains.
        recipe: of a model that is not prepared yet; one that comes by name is calibrated at "fast", as of
            ``fxq.quantize``, and a Recipe as it is.
        forward: as of ``fxq.calibrate``.
        progress: show a bar, if stderr is a terminal.

    Raises:
        CalibrationError: there is no batch, or the prepared model has no ranges yet.
        InputError: a batch does not fit the model, or there is no such mode.
        MetricError: the metric raised or gave no number; or there is none, and the model returns no floating-point
            tensor with a finite number, or one that is all NaN.
        StageError: the model was converted, or has islands.
    """
    if mode not in MODES:
        raise InputError(f"mode is {' or '.join(map(repr, MODES))}, got {mode!r}")
    if metric is not None:
        check_metric(metric)
    data = as_kept_data(batches, forward, progress)
    prepared = _calibrated(model, data, recipe)
    board, samples = make_switchboard(prepared), read_samples(prepared, data)
    team = team_of_now() if data.share and metric is None else None
    with saying(progress) as say, telling(team):
        try:
            return measure_groups(
                board,
                samples,
                metric,
                mode,
                lambda index: say(f"sensitivity: group {index + 1} of {len(board.groups)}"),
                team,
            )
        except PartlyMeasuredError as interrupt:
            return interrupt.found


def make_switchboard(prepared: GraphModule) -> Switchboard:
    """Return a switchboard of a copy of a calibrated model.

    Raises:
        CalibrationError: it has no ranges yet.
        StageError: it has islands.
    """
    state = check_one_graph(prepared)
    gm = copy_graph(prepared).eval()
    check_calibrated(gm, "sensitivity")
    fit_weights(gm, only_missing=True)
    return Switchboard(gm, state.settings.target, state.changes.float_weights(gm))


def check_one_graph(prepared: GraphModule) -> State:
    """Return the state of a prepared model; a StageError where it is no such model, or one with islands."""
    state = require_state(prepared, Stage.PREPARED, "sensitivity")
    if state.islands is not None:
        raise StageError(
            "one graph is switched, and this model runs its own Python around islands "
            f"({', '.join(state.islands.paths)}): prepare the modules at these paths by themselves"
        )
    return state


class PartlyMeasuredError(KeyboardInterrupt):
    """An interrupt between groups.

    Args:
        found: the sensitivity of those that were measured.
    """

    def __init__(self, found: Sensitivity) -> None:
        super().__init__()
        self.found = found


def measure_groups(
    board: Switchboard,
    samples: Sequence[Inputs],
    metric: Metric | None,
    mode: Mode,
    before_each: Callable[[int], None],
    team: Team | None = None,
) -> Sensitivity:
    """Return the sensitivity of each group of a switchboard, which is all quantized afterwards; see ``sensitivity``.

    ``before_each`` is told the index of the group whose turn it is. A ``team`` measures each group in one process.

    Raises:
        PartlyMeasuredError: it was interrupted when some groups, and not those of a team, were measured.
    """
    judge = SqnrJudge(board, samples) if metric is None else None
    notes = () if judge is None else tuple(judge.notes)

    def measure(in_float: Sequence[Group], what: str) -> float:
        board.leave_in_float(in_float)
        if judge is not None:
            return judge.sqnr_db()
        assert metric is not None
        return measured(metric, board.gm, what)

    def report(values: Mapping[Group, float], *notes: str) -> Sensitivity:
        rows = tuple(
            GroupSensitivity(group.paths, group.kind, value, _share(group, counted, total))
            for group, value in values.items()
        )
        count = sum(one.samples or 1 for one in samples)
        return Sensitivity(rows, mode, metric is not None, in_float, quantized, count, notes)

    counted = count_multiplications(board.gm, samples[0].part(0, 1))
    total = sum(counted.values())
    in_float = math.inf if metric is None else measure(board.groups, "the model with all groups in float")
    quantized = measure([], "the quantized model")
    values: dict[Group, float] = {}
    try:
        for index, group in enumerate(board.groups):
            if team is not None and index % team.size != team.rank:
                continue
            before_each(index)
            others = [other for other in board.groups if other is not group]
            alone = f"the model with {group.path!r} alone " + ("quantized" if mode == "one_quantized" else "in float")
            values[group] = measure(others if mode == "one_quantized" else [group], alone)
    except KeyboardInterrupt as interrupt:
        if team is not None or not values:
            raise
        note = f"interrupted: {len(values)} of {len(board.groups)} groups were measured"
        raise PartlyMeasuredError(report(values, note, *notes)) from interrupt
    finally:
        board.leave_in_float([])
    if team is not None:
        own = {board.groups.index(group): value for group, value in values.items()}
        of_all: dict[int, float] = {}
        for share in team.exchange("the sensitivities", own, True):
            of_all.update(share)
        values = {group: of_all[index] for index, group in enumerate(board.groups)}
    if metric is not None and len({in_float, quantized, *values.values()}) == 1:
        notes = (f"the metric is {in_float:g} for every model that it was given: it tells nothing about them",)
    return report(values, *notes)


def as_kept_data(batches: Iterable[Any] | Data, forward: Forward | None, progress: bool) -> Data:
    """Return data that can be read as often as wanted: what a generator gives is kept."""
    if isinstance(batches, Data):
        if forward is not None:
            raise InputError("fxq.Data holds a forward of its own: give forward to it")
        kept = copy.copy(batches)  # with max_samples None, which holds out more than 64 would
        kept.batches = list(batches.batches) if batches.is_iterator else batches.batches
        return kept
    if isinstance(batches, Iterable) and not isinstance(batches, Tensor | Mapping) and iter(batches) is batches:
        batches = list(batches)
    return Data(batches, forward, progress=progress)


def read_samples(prepared: GraphModule, data: Data) -> list[Inputs]:
    """Return the samples to measure on."""
    own = Data(data.batches, data.forward, data.max_samples, 0, data.progress, data.share)
    own.begin(keep=True, hold_out=False)
    kept = own.kept(prepared)
    if own.team is not None:
        own.team.is_over = True
    return kept


def _calibrated(model: nn.Module, data: Data, recipe: str | Recipe) -> GraphModule:
    """Return ``model`` where it is prepared, else prepare and calibrate it."""
    if find_state(model) is not None:
        assert isinstance(model, GraphModule)
        return model
    example_inputs = None if data.forward is not None else first_inputs(as_module(model), data.batches)[0]
    chosen, asked = recipe_at(recipe, None, has_batches=True)
    prepared = prepare(model, example_inputs, chosen)
    if needs_data(prepared):
        calibrate(prepared, data, unjudged=asked)
    return prepared


def _share(group: Group, counted: Mapping[Any, int], total: int) -> float:
    return sum(counted.get(node, 0) for node in group.nodes) / total if total else 0.0
