"""The ``fxq`` command: its options and help texts. What a command does lies in a module of its own."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fxq.cli import options
from fxq.cli.calibration_data import DataSource
from fxq.cli.console import CommandGroup, print_plain
from fxq.cli.demo import DemoOptions, run_demo
from fxq.cli.example_inputs import ExampleSource
from fxq.cli.explain import run_explain
from fxq.cli.images import ImageOptions
from fxq.cli.models import ModelSource
from fxq.cli.passes import run_passes_listing
from fxq.cli.quantize import QuantizeJob, run_quantize
from fxq.cli.recipes import RecipeChoice, run_recipe
from fxq.cli.targets import run_target, run_targets_listing

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]fxq demo[/]. [bold]fxq COMMAND --help[/] has examples.",
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        print_plain(f"fxq {version('fxq')}")
        raise typer.Exit


@app.callback()
def common(
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="FXQ_TRACEBACK", help="Show where an error comes from.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A trained PyTorch model goes in, a fused int8 ONNX file comes out."""


@app.command(epilog="[dim]Example:[/] fxq demo --out /tmp/fxq-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the files; made if needed.")] = Path("fxq-demo"),
    seed: Annotated[int, typer.Option(help="Of the split, the initial weights and the order of training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Train on a quarter of the digits: less accurate.")] = False,
) -> None:
    """Train a small ResNet on real digits, quantize it for two runtimes, and compare.

    Offline and self-contained; about half a minute on two cores.
    """
    run_demo(DemoOptions(out, seed, quick))


@app.command(epilog=options.QUANTIZE_EXAMPLES)
def quantize(  # noqa: PLR0913 - typer makes an option of each argument
    model: options.Model,
    *,
    weights: options.Weights = None,
    num_classes: options.NumClasses = None,
    recipe: options.Recipe = "tensorrt",
    calibrator: options.Calibrator = None,
    leave_in_float: options.LeaveInFloat = None,
    verify: options.Verify = False,
    calib_data: options.CalibData = None,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    out: options.Out,
    static_batch: options.StaticBatch = False,
    explain: options.Explain = False,
) -> None:
    """Quantize a model and write it as a checked QDQ ONNX file."""
    images = ImageOptions(image_size, resize, mean, std)  # type: ignore[arg-type]  # parsed by options.Mean
    choice = RecipeChoice(recipe, calibrator, tuple(leave_in_float or ()))
    if calib_data is None and choice.resolve().resolved_target.needs_data:
        raise typer.BadParameter(
            f"the recipe {recipe} needs typical inputs; dynamic and weight_only do not", param_hint="--calib-data"
        )
    job = QuantizeJob(
        model=ModelSource(model, weights, num_classes),
        data=None if calib_data is None else DataSource(calib_data, batch_size, num_samples, images),
        example=ExampleSource(input_shape, images),  # type: ignore[arg-type]  # parsed by options.InputShape
        recipe=choice,
        out=out,
        static_batch=static_batch,
        verify=verify,
        explain=explain,
    )
    run_quantize(job)


@app.command(epilog=options.EXPLAIN_EXAMPLES)
def explain(
    model: options.Model,
    recipe: options.Recipe = "tensorrt",
    leave_in_float: options.LeaveInFloat = None,
    num_classes: options.NumClasses = None,
    input_shape: options.InputShape = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what would be quantized how, and why, or why not. Needs neither weights nor data."""
    choice = RecipeChoice(recipe, None, tuple(leave_in_float or ()))
    run_explain(ModelSource(model, None, num_classes), choice, input_shape, as_json)  # type: ignore[arg-type]  # parsed


@app.command()
def passes(as_json: options.AsJson = False) -> None:
    """List the passes: the built-in ones, and those of installed plugins."""
    run_passes_listing(as_json)


@app.command(epilog="[dim]Example:[/] fxq targets tensorrt > mine.toml")
def targets(
    name: Annotated[
        str | None, typer.Argument(help="Print this one as TOML, or that of a .toml file.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the runtimes to quantize for, those of installed packages too, or print one.

    A recipe names one: target = "tensorrt", or a file of yours: target = "mine.toml".
    """
    if name is None:
        run_targets_listing(as_json)
    else:
        run_target(name)


@app.command(epilog="[dim]Example:[/] fxq recipe tensorrt > mine.toml")
def recipe(name: Annotated[str, typer.Argument(help="As of --recipe, such as tensorrt, or a .toml file.")]) -> None:
    """Print a recipe as TOML: edit it, and pass the file to --recipe."""
    run_recipe(name)
