"""The ``fxq`` command: its options and help texts. What a command does lies in a module of its own.

Those are imported where a command runs: torch takes seconds, and help needs none of it.
"""

from pathlib import Path
from typing import Annotated

import typer

import fxq
from fxq.cli import file_options, layer_commands, options, tune_command, verify_commands
from fxq.cli.console import CommandGroup, print_plain
from fxq.cli.image_options import refuse_image_options

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]fxq demo[/]. [bold]fxq COMMAND --help[/] has examples. Exit codes: 0 done, 1 refused, "
    "2 a wrong call, 3 a fault of fxq or of the model's own code.",
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        print_plain(f"fxq {fxq.__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: options.VerboseForAll = False,
    quiet: options.QuietForAll = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="FXQ_TRACEBACK", help="Let an error end fxq as Python ends.")
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
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a small ResNet on real digits, quantize it for two runtimes, and compare.

    Offline and self-contained; under a minute on two cores.
    """
    from fxq.cli.demo import DemoOptions, run_demo

    run_demo(DemoOptions(out, seed, quick))


@app.command(epilog=options.QUANTIZE_EXAMPLES)
def quantize(  # noqa: PLR0913 - typer makes an option of each argument
    context: typer.Context,
    model: options.Model,
    *,
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    num_classes: options.NumClasses = None,
    recipe: options.Recipe = "tensorrt",
    calibrator: options.Calibrator = None,
    accuracy: options.Accuracy = None,
    leave_in_float: options.LeaveInFloat = None,
    leaf: options.Leaf = None,
    untraceable: options.Untraceable = "error",
    frontend: options.Frontend = "auto",
    verify: options.Verify = False,
    min_sqnr_db: options.MinSqnrDb = None,
    calib_data: options.CalibData = None,
    skip_bad_images: options.SkipBadImages = False,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    max_samples: options.MaxSamples = None,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    out: options.Out,
    save: options.Save = None,
    static_batch: file_options.StaticBatch = False,
    dynamic: file_options.Dynamic = None,
    input_names: file_options.InputNames = None,
    output_names: file_options.OutputNames = None,
    opset: file_options.Opset = None,
    float_dtype: file_options.FloatDtype = "float32",
    keep_io_types: file_options.KeepIoTypes = False,
    explain: options.Explain = False,
    report: options.Report = None,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Quantize a model and write it as a checked QDQ ONNX file."""
    from fxq.cli.calibration_data import DataSource
    from fxq.cli.example_inputs import ExampleSource
    from fxq.cli.file_form import FileForm
    from fxq.cli.images import ImageOptions
    from fxq.cli.models import ModelSource
    from fxq.cli.quantize import QuantizeJob, run_quantize
    from fxq.cli.recipes import RecipeChoice

    images = ImageOptions(image_size, resize, mean, std)  # type: ignore[arg-type]  # parsed by options.Mean
    in_float, leaves = tuple(leave_in_float or ()), tuple(leaf or ())
    has_data = calib_data is not None
    choice = RecipeChoice(recipe, calibrator, accuracy, in_float, leaves, untraceable, frontend, has_data)  # type: ignore[arg-type]  # parsed
    if not has_data and choice.resolve().resolved_target.needs_data:
        raise typer.BadParameter(
            f"the recipe {recipe} needs typical inputs; dynamic and weight_only do not", param_hint="--calib-data"
        )
    data = None
    if calib_data is not None:
        data = DataSource(calib_data, batch_size, num_samples, images, skip_bad_images, max_samples)
        if data.is_arrays:
            refuse_image_options(context, data.path)
    form = FileForm(static_batch, tuple(dynamic or ()), input_names, output_names, opset, float_dtype, keep_io_types)  # type: ignore[arg-type]  # parsed
    job = QuantizeJob(
        model=ModelSource(model, weights, num_classes, random_weights),
        data=data,
        example=ExampleSource(tuple(input_shape or ()), images),  # type: ignore[arg-type]  # parsed by options.InputShape
        recipe=choice,
        out=out,
        form=form,
        verify=verify,
        explain=explain,
        min_sqnr_db=min_sqnr_db,
        save=save,
        reports=tuple(report or ()),
    )
    run_quantize(job)


@app.command(epilog=options.EXPLAIN_EXAMPLES)
def explain(  # noqa: PLR0913 - typer makes an option of each argument
    model: options.Model,
    *,
    recipe: options.Recipe = "tensorrt",
    leave_in_float: options.LeaveInFloat = None,
    leaf: options.Leaf = None,
    untraceable: options.Untraceable = "error",
    frontend: options.Frontend = "auto",
    num_classes: options.NumClasses = None,
    input_shape: options.InputShape = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what would be quantized how, and why, or why not. Needs neither weights nor data."""
    from fxq.cli.explain import run_explain
    from fxq.cli.models import ModelSource
    from fxq.cli.recipes import RecipeChoice

    in_float, leaves = tuple(leave_in_float or ()), tuple(leaf or ())
    choice = RecipeChoice(recipe, None, None, in_float, leaves, untraceable, frontend)  # type: ignore[arg-type]  # parsed
    inputs = tuple(input_shape or ())
    run_explain(ModelSource(model, None, num_classes), choice, inputs, as_json)  # type: ignore[arg-type]  # parsed


app.command(epilog=layer_commands.COMPARE_EXAMPLES)(layer_commands.compare)
app.command(epilog=layer_commands.SENSITIVITY_EXAMPLES)(layer_commands.sensitivity)
app.command(epilog=layer_commands.REPORT_EXAMPLES)(layer_commands.report)
app.command(epilog=tune_command.TUNE_EXAMPLES)(tune_command.tune)
app.command(epilog=verify_commands.VERIFY_EXAMPLES)(verify_commands.verify)
app.command(epilog=verify_commands.BENCH_EXAMPLES)(verify_commands.bench)


@app.command(epilog="[dim]Example:[/] fxq diff plain.fxq best.fxq")
def diff(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A file of fxq.save.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another one.", show_default=False)],
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what tells two saved models apart: recipe, plans, ranges and weights, and how far. Needs no model."""
    from fxq.cli.diff import run_diff

    run_diff(first, second, as_json)


@app.command(epilog="[dim]Example:[/] fxq passes plan_ops")
def passes(
    name: Annotated[str | None, typer.Argument(help="Show all there is about this one.", show_default=False)] = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """List the passes in the order in which they run, those of installed plugins too, or show one."""
    from fxq.cli.passes import run_pass, run_passes_listing

    if name is None:
        run_passes_listing(as_json)
    else:
        run_pass(name, as_json)


@app.command(epilog="[dim]Example:[/] fxq targets tensorrt > mine.toml")
def targets(
    name: Annotated[
        str | None, typer.Argument(help="Print this one as TOML, or that of a .toml file.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """List the runtimes to quantize for, those of installed packages too, or print one.

    A recipe names one: target = "tensorrt", or a file of yours: target = "mine.toml".
    """
    from fxq.cli.targets import run_target, run_targets_listing

    if name is None:
        run_targets_listing(as_json)
    else:
        run_target(name)


@app.command(epilog="[dim]Example:[/] fxq recipe tensorrt > mine.toml")
def recipe(
    name: Annotated[
        str | None, typer.Argument(help="As of --recipe, such as tensorrt, or a .toml file.", show_default=False)
    ] = None,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """List the recipes and what a rule looks like, or print one as TOML: edit it, and pass the file to --recipe."""
    from fxq.cli.recipes import run_recipe, run_recipes_listing

    if name is None:
        run_recipes_listing()
    else:
        run_recipe(name)
