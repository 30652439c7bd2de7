"""``fxq.tune``: quantize a model, and leave in float what is faster so, by measurement on this machine."""

import tempfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxq.batches import ExampleInputs, Forward, Inputs, as_positional, first_inputs
from fxq.compare.outputs import named_leaves
from fxq.data import Data
from fxq.distributed import team_of_now
from fxq.errors import InputError, RuntimeUnavailableError
from fxq.given_model import as_module
from fxq.progress import saying
from fxq.recipe import Recipe
from fxq.recipe import recipe as find_recipe
from fxq.runtimes import RUNTIMES, Runtime, get_runtime
from fxq.sensitivity import as_kept_data
from fxq.surroundings import in_plain_surroundings
from fxq.tuning.building import Builder
from fxq.tuning.report import Tuned
from fxq.tuning.search import Search
from fxq.tuning.timing import timing_of


@in_plain_surroundings
def tune(  # noqa: PLR0913 - a model, data, and where it is to be fast
    model: nn.Module,
    batches: Iterable[Any] | Data,
    recipe: str | Recipe = "onnxruntime",
    runtime: str | None = None,
    threads: int | None = None,
    example_inputs: ExampleInputs = None,
    forward: Forward | None = None,
    budget_s: float | None = None,
    progress: bool = True,
) -> Tuned:
    """Quantize a model, leaving in float what is faster so in a runtime on this machine.

    Where int8 and float meet, tensors are converted and laid out anew, which costs as much as kernels save: regions of
    the model are judged, by how long the whole file takes. Proposed are kinds of operations that integer kernels are
    bad at, and regions by the runtime's own profile. One that is faster, in turn with the fastest by then and once
    more, is kept. The result, calibrated on the data, is timed with the default and with float: neither is faster than
    what is returned. It is as accurate as the default or more.

    Files run in processes of their own: one that the runtime refuses or does not survive is not taken, a note says
    which and why, and the search goes on.

    Ctrl-C ends the search: the fastest by then is calibrated and returned, with a note.

    Args:
        model: as of ``fxq.prepare``; not modified.
        batches, forward: to calibrate on, as of ``fxq.calibrate``.
        recipe: "onnxruntime", "openvino", or another whose target names a runtime that runs here; its own rules stay.
        runtime: where to time, "onnxruntime" or "openvino"; None for that of the target.
        threads: of one run; None leaves it to the runtime.
        example_inputs: what is timed: latency depends on shapes. None for the first sample of the first batch.
        budget_s: seconds after which the search ends; what won by then is calibrated all the same.
        progress: show what is known so far, if stderr is a terminal.

    Raises:
        InputError: a number is out of range, a batch does not fit the model, there is none to take example inputs from,
            or several processes call this.
        RuntimeUnavailableError: the runtime does not run files on this machine, or is not installed.
        RuntimeRefusedError, RuntimeCrashedError: it does not take or does not survive the default's file.
        StageError: the model needs islands, which are no one graph.
        FxqError: of ``prepare``, ``calibrate``, ``convert`` and ``export_onnx``.
    """
    if not (
        budget_s is None or (isinstance(budget_s, int | float) and not isinstance(budget_s, bool) and budget_s > 0)
    ):
        raise InputError(f"budget_s is a number of seconds above 0, got {budget_s!r}")
    chosen = find_recipe(recipe)
    timed = find_runtime(chosen, runtime, threads)
    data = as_kept_data(batches, forward, progress=False)
    if data.share and team_of_now() is not None:
        raise InputError(
            "several processes would measure at once, and disturb each other: let one of them call tune with "
            "fxq.Data(batches, share=False), and give tuned.recipe to the others"
        )
    inputs = _inputs(as_module(model), data, example_inputs)
    arrays = [tensor.detach().cpu().numpy() for _, tensor in named_leaves(inputs, "input", Tensor)]
    shapes = ", ".join(f"{array.dtype} {'x'.join(map(str, array.shape))}" for array in arrays)
    count = "its own number of" if threads is None else str(threads)
    words = f"{timed.name} {timed.version}, {count} threads, inputs {shapes}"
    with saying(progress) as say, tempfile.TemporaryDirectory() as folder:
        builder = Builder(model, data, inputs, chosen, Path(folder))
        return Search(builder, *timing_of(timed, arrays), say, budget_s).run(words)


def find_runtime(recipe: Recipe, name: str | None, threads: int | None) -> Runtime:
    """Return the runtime to time in.

    Raises:
        InputError: ``threads`` is no number of threads.
        RuntimeUnavailableError: there is none, it runs no files here, or it is not installed.
    """
    target = recipe.resolved_target
    name = target.file.runtime if name is None else name
    if not name:
        raise RuntimeUnavailableError(
            f"target {target.name!r} names no runtime to measure in: say which with runtime=, one of "
            f"{', '.join(_running())}"
        )
    found = get_runtime(name)
    if not found.runs_here:
        raise RuntimeUnavailableError(
            f"{target.name!r} is not measured on this machine: {name} compiles files and does not run them here. tune "
            f"is for {', '.join(_running())}; fxq.verify shows what {name} makes of a file"
        )
    if not found.is_installed():
        raise RuntimeUnavailableError(f"{name} is not installed: pip install {found.package}")
    has_threads = any(field.name == "threads" for field in fields(found))
    return get_runtime(name, threads=threads) if has_threads else found


def _running() -> list[str]:
    return [name for name, runtime in RUNTIMES.items() if runtime.runs_here]


def _inputs(model: nn.Module, data: Data, example_inputs: ExampleInputs) -> tuple[Any, ...]:
    """Return positional inputs to time on."""
    given = as_positional(model, example_inputs)
    if given is not None:
        return given
    first = None if data.forward is not None else first_inputs(model, data.batches)[0]
    if first is None:
        raise InputError("tune times files on inputs that it cannot take from the batches: give it example_inputs")
    return Inputs(first, {}).part(0, 1).args
