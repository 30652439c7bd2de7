"""The commands ``fxq compare``, ``sensitivity`` and ``report``: their options. What they do lies in ``layers.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxq.cli import options
from fxq.cli.image_options import refuse_image_options

if TYPE_CHECKING:
    from fxq.cli.layers import LayersJob

COMPARE_EXAMPLES = """\
[dim]Examples:[/]
fxq compare torchvision:resnet50 --weights resnet50.pt \\
  --calib-data photos/ --plot layers.png
fxq compare my_package.models:make_net --calib-data inputs.npy --json"""

SENSITIVITY_EXAMPLES = """\
[dim]Example:[/]
fxq sensitivity torchvision:resnet50 --weights resnet50.pt \\
  --calib-data photos/ --num-samples 32"""

REPORT_EXAMPLES = """\
[dim]Example:[/]
fxq report torchvision:resnet50 --weights resnet50.pt \\
  --calib-data photos/ --out report.html"""


def _mode(text: str) -> str:
    if text not in ("one_quantized", "one_float"):
        raise typer.BadParameter(f"it is one_quantized or one_float, got {text!r}")
    return text


NeededData = Annotated[
    Path,
    typer.Option(
        "--calib-data",
        metavar="PATH",
        help="Typical inputs, to calibrate on and to measure on. Images: a folder, one file or a quoted glob. Arrays: "
        ".npy or .pt of one input, .npz or .pt of inputs by name.",
        show_default=False,
        rich_help_panel="Calibration data",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a picture too: .png, .svg, .pdf; needs matplotlib.", show_default=False),
]
Mode = Annotated[
    str,
    typer.Option(
        parser=_mode,
        metavar="WORD",
        help="[bold]one_quantized[/]: all else in float, what each group costs by itself; [bold]one_float[/]: all else "
        "quantized, what leaving it in float gains.",
    ),
]


Out = Annotated[
    list[Path],
    typer.Option(
        metavar="FILE",
        help="Where to write: a page that needs no network (.html), or its data (.json). Repeat for both.",
        show_default=False,
    ),
]
NoFile = Annotated[
    bool,
    typer.Option(
        "--no-file",
        help="Write no file to measure: quicker, and without its size, what fxq verify finds in it, and latency.",
    ),
]


def compare(  # noqa: PLR0913 - typer makes an option of each argument
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
    frontend: options.Frontend = "auto",
    calib_data: NeededData,
    skip_bad_images: options.SkipBadImages = False,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    max_samples: options.MaxSamples = None,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    plot: Plot = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Show how far each layer of the quantized model is from the float one, and its own part in that."""
    from fxq.cli.layers import run_compare

    run_compare(layers_job(locals()))


def sensitivity(  # noqa: PLR0913 - typer makes an option of each argument
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
    frontend: options.Frontend = "auto",
    calib_data: NeededData,
    skip_bad_images: options.SkipBadImages = False,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    max_samples: options.MaxSamples = None,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    mode: Mode = "one_quantized",
    plot: Plot = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what each group of operations costs the outputs, the most sensitive first."""
    from fxq.cli.layers import run_sensitivity

    run_sensitivity(layers_job(locals()), mode)


def report(  # noqa: PLR0913 - typer makes an option of each argument
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
    frontend: options.Frontend = "auto",
    calib_data: NeededData,
    skip_bad_images: options.SkipBadImages = False,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    max_samples: options.MaxSamples = None,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    out: Out,
    no_file: NoFile = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one page about the quantized model: accuracy, size, speed, graph, layers, ranges and what verify finds."""
    from fxq.cli.layers import run_report

    run_report(layers_job(locals()), out, has_file=not no_file)


def layers_job(given: dict[str, Any]) -> "LayersJob":
    """Return what the options say, by name: typer wants each in the signature of every command."""
    from fxq.cli.calibration_data import DataSource
    from fxq.cli.example_inputs import ExampleSource
    from fxq.cli.images import ImageOptions
    from fxq.cli.layers import LayersJob
    from fxq.cli.models import ModelSource
    from fxq.cli.recipes import RecipeChoice

    images = ImageOptions(given["image_size"], given["resize"], given["mean"], given["std"])
    data = DataSource(
        given["calib_data"],
        given["batch_size"],
        given["num_samples"],
        images,
        given["skip_bad_images"],
        given.get("max_samples"),
    )
    if data.is_arrays:
        refuse_image_options(given["context"], data.path)
    in_float, leaf = (tuple(given[name] or ()) for name in ("leave_in_float", "leaf"))
    return LayersJob(
        model=ModelSource(given["model"], given["weights"], given["num_classes"], given["random_weights"]),
        data=data,
        example=ExampleSource(tuple(given["input_shape"] or ()), images),
        recipe=RecipeChoice(
            given["recipe"],
            given["calibrator"],
            given.get("accuracy"),
            in_float,
            leaf,
            frontend=given.get("frontend", "auto"),
            has_data=True,
        ),
        plot=given.get("plot"),
        as_json=given.get("as_json", False),
    )
