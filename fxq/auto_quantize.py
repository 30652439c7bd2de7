"""auto_quantize: the smallest set of operations left in float with which a quantized model keeps its metric.

All is quantized first. Where that loses too much, groups of operations that fuse are ranked by the noise that each
brings to the outputs; the smallest number of the noisiest that keeps the metric in float is found by doubling, then
halving; and what of those proves unnecessary goes back to integers, the most expensive first, several at once where
that holds, until sixteen in a row were needed. Up to here the quantizers of one calibrated model are switched, so that
a try costs one run of the metric. What was found is then prepared, calibrated and converted anew, and measured: where
the converted model falls short, more is left in float.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from fxq.auto_asked import Asked
from fxq.auto_report import AutoQuantized
from fxq.auto_search import Search
from fxq.batches import ExampleInputs, Forward, first_inputs
from fxq.data import Data
from fxq.distributed import team_of_now
from fxq.errors import InputError
from fxq.given_model import as_module
from fxq.metric import Metric, check_metric
from fxq.progress import saying
from fxq.recipe import Recipe, recipe_at
from fxq.sensitivity import as_kept_data
from fxq.surroundings import in_plain_surroundings


@in_plain_surroundings
def auto_quantize(  # noqa: PLR0913 - a model, data, and what is asked of the result
    model: nn.Module,
    batches: Iterable[Any] | Data,
    metric: Metric,
    max_drop: float = 0.01,
    recipe: str | Recipe = "tensorrt",
    accuracy: str | None = None,
    max_float: float | None = None,
    budget_s: float | None = None,
    example_inputs: ExampleInputs = None,
    forward: Forward | None = None,
    progress: bool = True,
) -> AutoQuantized:
    """Quantize a model, leaving as few operations in float as keep ``metric(quantized) >= metric(model) - max_drop``.

    Ctrl-C ends the search, and returns the best converted model so far, with a note; so does a metric that fails, with
    a note of the error. Before the first is converted they are a KeyboardInterrupt and a MetricError as ever.

    What an operation costs is counted, in multiplications: ``fxq.tune`` measures time, in the runtime. What does not go
    to the recipe's integers stays in float: no target of fxq's own has 16-bit integers; where one of yours has, give
    them to operations by rules of the recipe.

    Args:
        model: as of ``fxq.prepare``; not modified.
        batches, forward: to calibrate on, as of ``fxq.calibrate``.
        metric: ``metric(model) -> float``, higher is better; it runs the model that it is given, on data of its own
            that is none of ``batches``. Beside the float model it is called once where nothing is needed in float, six
            to twenty times for a ResNet of some twenty groups, and up to 65 times for one of 80 (mobilenetv3_small_050)
            of which most are needed. ``budget_s`` bounds that.
        max_drop: how much lower the metric may get, in its unit.
        recipe: as of ``fxq.prepare``; its own rules stay.
        accuracy: a level of ``Recipe.with_accuracy``; None as of ``fxq.quantize``, from whose model the search starts.
        max_float: how many groups of operations may be left in float at most: a count, or as a float from 0 to 1 a
            share of them. Where that is not enough, the best within it is returned, with a note.
        budget_s: seconds after which the search ends, with the best that it found by then; the first conversion is
            made in any case.
        example_inputs: as of ``fxq.prepare``; None for the first batch.
        progress: show what is known so far, if stderr is a terminal.

    Raises:
        InputError: a number is out of range, a batch does not fit the model, or several processes call this.
        MetricError: the metric raised or gave no number before there was a converted model, does not depend on the
            model, or is another in each call.
        StageError: the model needs islands, which are no one graph.
        FxqError: of ``prepare``, ``calibrate`` and ``convert``.
    """
    check_metric(metric)
    _check_numbers(max_drop, max_float, budget_s)
    chosen, asked = recipe_at(recipe, accuracy, has_batches=True)
    data = as_kept_data(batches, forward, progress=False)
    if data.share and team_of_now() is not None:
        raise InputError(
            "several processes would search each for itself, and end with different models: let one of them call "
            "auto_quantize with fxq.Data(batches, share=False), and give found.recipe to the others"
        )
    if example_inputs is None and data.forward is None:
        example_inputs = first_inputs(as_module(model), data.batches)[0]
    with saying(progress) as say:
        question = Asked(model, data, example_inputs, chosen, metric, max_drop, max_float, budget_s, asked)
        return Search(question, say).run()


def _check_numbers(max_drop: Any, max_float: Any, budget_s: Any) -> None:
    """Raise an InputError for what is no number, or out of range."""
    if not _is_number(max_drop) or not max_drop >= 0:
        raise InputError(
            f"max_drop is how much lower than the float model's the metric may get, 0 or more, got {max_drop!r}: less "
            "than no drop not even the float model reaches"
        )
    is_share = isinstance(max_float, float) and 0 <= max_float <= 1
    is_count = isinstance(max_float, int) and not isinstance(max_float, bool) and max_float >= 0
    if not (max_float is None or is_share or is_count):
        raise InputError(f"max_float is a count of groups, or as a float from 0 to 1 a share, got {max_float!r}")
    if not (budget_s is None or (_is_number(budget_s) and budget_s > 0)):
        raise InputError(f"budget_s is a number of seconds above 0, got {budget_s!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
