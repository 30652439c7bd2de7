"""``fxq tune``: measure, write the recipe that is fastest, and the model on request."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fxq import api
from fxq.cli.console import is_quiet, print_json, print_result
from fxq.cli.layers import LayersJob, load, one_of_each
from fxq.cli.quantize import check_writable
from fxq.cli.recipes import commented
from fxq.errors import ExportError
from fxq.literal import literal
from fxq.output_file import OutputFile
from fxq.tuning import Tuned, find_runtime, tune

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneJob:
    """What ``fxq tune`` was asked for; None: no file, the target's runtime, the runtime's threads, no end."""

    layers: LayersJob
    out: Path
    onnx: Path | None
    runtime: str | None
    threads: int | None
    budget_s: float | None


def run_tune(job: TuneJob) -> None:
    """Measure, write, and print what was tried.

    Raises:
        FxqError: something that was named does not exist or does not fit, or cannot be measured, quantized or written.
    """
    if job.out.suffix != ".toml":
        raise ExportError(f"--out {job.out}: the recipe is TOML, name it .toml; --onnx is for the model")
    with OutputFile(job.out).staging():
        pass
    if job.onnx is not None:
        check_writable(job.onnx)
    recipe = job.layers.recipe.resolve()
    find_runtime(recipe, job.runtime, job.threads)
    model, batches, inputs = load(job.layers)
    logger.info("%s: measuring for %s; each of some twenty files takes seconds", type(model).__name__, recipe.name)
    found = tune(
        model,
        batches,
        recipe,
        job.runtime,
        job.threads,
        one_of_each(inputs),
        budget_s=job.budget_s,
        progress=not is_quiet(),
    )
    _write(job.out, found)
    logger.info("wrote %s", job.out)
    if job.onnx is not None:
        api.export_onnx(found.converted, job.onnx)
        logger.info("wrote %s", job.onnx)
    if job.layers.as_json:
        print_json(found.to_dict())
    else:
        print_result(found)


def _write(path: Path, found: Tuned) -> None:
    times = (("tuned", found.result.latency), ("default", found.default.latency), ("float", found.in_float_latency))
    said = [
        f"By fxq tune in {found.runtime}:",
        ", ".join(f"{name} {latency.usual}" for name, latency in times) + ".",
        f"{len(found.in_float)} of {found.groups} groups of operations are in float:",
        *(found.reasons or ("none of what was tried is faster",)),
    ]
    header = "\n".join(f"# {literal(line)}" for line in said)  # a module path may hold line ends
    file = OutputFile(path)
    with file.staging() as folder:
        staged = folder / file.real.name
        staged.write_text(f"{header}\n{commented(found.recipe.to_toml())}", encoding="utf-8")
        file.place(staged, is_onnx=False)
