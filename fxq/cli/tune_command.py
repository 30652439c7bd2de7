"""The command ``fxq tune``: its options. What it does lies in ``tune.py``."""

from pathlib import Path
from typing import Annotated

import typer

from fxq.cli import options
from fxq.cli.layer_commands import NeededData, layers_job

TUNE_EXAMPLES = """\
[dim]Examples:[/]
fxq tune torchvision:efficientnet_b0 --weights b0.pt \\
  --calib-data photos/ --recipe onnxruntime --out tuned.toml --budget 300
fxq quantize torchvision:efficientnet_b0 --weights b0.pt \\
  --calib-data photos/ --recipe tuned.toml --out b0.onnx"""

Recipe = Annotated[
    str,
    typer.Option(
        help="[bold]onnxruntime[/], [bold]openvino[/], another target that names one of these runtimes (see fxq "
        "targets), or a .toml file (see fxq recipe). Its own rules stay.",
        metavar="NAME",
        rich_help_panel="How to quantize",
    ),
]
TunedRecipe = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help="The recipe to write, such as tuned.toml: for fxq quantize --recipe.",
        show_default=False,
        rich_help_panel=options.OUTPUT,
    ),
]
Onnx = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the model too, as .onnx.", show_default=False, rich_help_panel=options.OUTPUT
    ),
]
RuntimeName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where to time: onnxruntime or openvino.", show_default="that of the recipe's target"
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads of one run.", show_default="the runtime's choice")
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=1,
        help="End the search then; what won by then is calibrated all the same. Ctrl-C does so too.",
        show_default="none",
    ),
]


def tune(  # noqa: PLR0913 - typer makes an option of each argument
    context: typer.Context,
    model: options.Model,
    *,
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    num_classes: options.NumClasses = None,
    recipe: Recipe = "onnxruntime",
    runtime: RuntimeName = None,
    threads: Threads = None,
    budget: Budget = None,
    calibrator: options.Calibrator = None,
    leave_in_float: options.LeaveInFloat = None,
    leaf: options.Leaf = None,
    calib_data: NeededData,
    skip_bad_images: options.SkipBadImages = False,
    input_shape: options.InputShape = None,
    batch_size: options.BatchSize = 32,
    num_samples: options.NumSamples = 512,
    image_size: options.ImageSize = 224,
    resize: options.Resize = None,
    mean: options.Mean = options.IMAGENET_MEAN,
    std: options.Std = options.IMAGENET_STD,
    out: TunedRecipe,
    onnx: Onnx = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure, on this machine, which parts of a model are faster in float, and write the recipe.

    One sample is timed. The result is never slower than the recipe's default, nor than float.
    """
    from fxq.cli.tune import TuneJob, run_tune

    run_tune(TuneJob(layers_job(locals()), out, onnx, runtime, threads, budget))
