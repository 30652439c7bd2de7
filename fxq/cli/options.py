"""The options of the commands, and examples of their use."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fxq.cli.console import set_quiet, set_verbose
from fxq.cli.input_spec import InputSpec, parse_input_spec

IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"

_DATA, _IMAGES, _RECIPE, OUTPUT = "Calibration data", "Images", "How to quantize", "Output"


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as {IMAGENET_MEAN}") from error


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser of one of ``words``."""

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"it is {', '.join(words[:-1])} or {words[-1]}, got {text!r}")
        return text

    return parse


def _input_spec(text: str) -> InputSpec:
    try:
        return parse_input_spec(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="[bold]package.module:callable[/] (a function or class without arguments; the current directory is "
        "searched first), [bold]torchvision:NAME[/], [bold]timm:NAME[/] or [bold]hf:DIR[/] (Hugging Face transformers: "
        "a directory with config.json and model.safetensors). Nothing is downloaded.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights: .safetensors, its .index.json where there are several, or a checkpoint of torch.save (.pt, "
        ".ckpt): tensors and plain data are read, and nothing is run.",
        show_default=False,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Outputs of a torchvision or timm model.", show_default=False),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="A torchvision or timm model, or an hf:config.json, without --weights: to look at placement and speed "
        "alone.",
    ),
]
CalibData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Typical inputs, prepared as in training; some hundred are enough. Images: a folder, one file or a quoted "
        "glob. Arrays: .npy or .pt of one input, .npz or .pt of inputs by name. The recipes dynamic and weight_only "
        "need none.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
SkipBadImages = Annotated[
    bool,
    typer.Option(
        "--skip-bad-images", help="Go on without the images that cannot be read, and name them.", rich_help_panel=_DATA
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Samples a batch.", rich_help_panel=_DATA)]
NumSamples = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Use at most so many images or rows, evenly spaced.", rich_help_panel=_DATA),
]
MaxSamples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Keep at most so many of them for what --accuracy adds, which takes memory and time by their number; one "
        "in eight is held out to judge by.",
        show_default="64, fewer of a model with large tensors",
        rich_help_panel=_DATA,
    ),
]
ImageSize = Annotated[int, typer.Option(metavar="N", min=1, help="Pixels of the centre crop.", rich_help_panel=_IMAGES)]
Resize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Pixels of the shorter side before the crop.",
        show_default="8/7 of the crop",
        rich_help_panel=_IMAGES,
    ),
]
Mean = Annotated[
    str,
    typer.Option(
        parser=_numbers,
        metavar="NUMBERS",
        help="Subtracted from values in 0 to 1, one number a channel. One number alone makes images grey; write "
        "0.5,0.5,0.5 for colour.",
        rich_help_panel=_IMAGES,
    ),
]
Std = Annotated[str, typer.Option(parser=_numbers, metavar="NUMBERS", help="Then divided by.", rich_help_panel=_IMAGES)]
Recipe = Annotated[
    str,
    typer.Option(
        help="[bold]tensorrt[/], [bold]onnxruntime[/], [bold]openvino[/]; without data [bold]dynamic[/], "
        "[bold]weight_only[/], [bold]weight_only_int4[/]; [bold]tensorrt-fp8[/], [bold]tensorrt-int4[/]; "
        "the name of another target (see fxq targets); or a .toml "
        "file (see fxq recipe).",
        metavar="NAME",
        rich_help_panel=_RECIPE,
    ),
]
Calibrator = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How ranges are fitted: max, minmax, moving_average, percentile, mse or entropy.",
        show_default="the recipe's",
        rich_help_panel=_RECIPE,
    ),
]
Accuracy = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        help="What calibration does beside ranges: [bold]plain[/], nothing; [bold]fast[/], equalize channels and "
        "correct biases, a few times the cost of calibration; [bold]best[/], also round weights for their inputs, "
        "minutes. Each step is measured on samples that it did not see, and undone where it hurts.",
        show_default="fast, from 32 samples on; of a .toml file what it lists",
        rich_help_panel=_RECIPE,
    ),
]
LeaveInFloat = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Leave matching modules in float, such as 'fc' or 'layer4.*'. Repeat for more.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Leaf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Do not trace into matching modules (paths or classes); they stay in float. For code that cannot be "
        "traced. Repeat for more.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Untraceable = Annotated[
    str,
    typer.Option(
        parser=one_of("error", "float", "islands"),
        metavar="WORD",
        help="What becomes of code that cannot be traced: [bold]error[/]; [bold]float[/] keeps the smallest module "
        "around it whole, in float; [bold]islands[/] quantizes the parts that can be traced of a model that "
        "cannot, such as a detector: --out then names a folder, for a file each.",
        rich_help_panel=_RECIPE,
    ),
]
Frontend = Annotated[
    str,
    typer.Option(
        parser=one_of("auto", "symbolic", "export"),
        metavar="WORD",
        help="What traces the model: [bold]symbolic[/] (torch.fx follows its Python), [bold]export[/] (torch.export "
        "runs it on the data or an --input-shape), or [bold]auto[/]: export where the other cannot.",
        rich_help_panel=_RECIPE,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Run the model before and after each pass that must keep numbers.", rich_help_panel=_RECIPE
    ),
]
MinSqnrDb = Annotated[
    float | None,
    typer.Option(
        metavar="DB",
        help="Fail, and write nothing, if an output has a lower signal to quantization noise ratio against the float "
        "model than this; by default what the recipe says, 5. 20 is good, from 10 fair.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FILE", help="The .onnx file to write.", show_default=False, rich_help_panel=OUTPUT)
]
Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the calibrated model too, such as model.fxq: for fxq.load in Python, and fxq diff.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Print what became of each operation, and why.", rich_help_panel=OUTPUT)
]
Report = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write a report too, with each layer's error and each group's sensitivity on up to 64 samples, and "
        "what the runtime makes of the file: a page that needs no network (.html), or its data (.json). Repeat for "
        "both.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        parser=_input_spec,
        metavar="[NAME:]SHAPE[:DTYPE]",
        help="An input, such as 1,3,224,224 or ids:1,128:int64. Repeat for more, by name or in order. An example for "
        "models whose Python tests shapes, and in place of calibration data where none is needed; with data, what the "
        "data must look like.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print plain data for programs.")]
_VERBOSE, _QUIET = "Show each pass, and the traceback of an error.", "Show warnings and errors alone."
# Behind a command they take effect at once; before it, when it starts.
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=set_verbose, help=_VERBOSE)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=set_quiet, help=_QUIET)]
VerboseForAll = Annotated[bool, typer.Option("--verbose", "-v", help=_VERBOSE)]
QuietForAll = Annotated[bool, typer.Option("--quiet", "-q", help=_QUIET)]

# Commands end their lines with a backslash and fit in 80 columns, so that they can be copied.
QUANTIZE_EXAMPLES = """\
[dim]A torchvision model and a folder of photographs:[/]
fxq quantize torchvision:resnet50 --weights resnet50.pt \\
  --calib-data photos/ --recipe tensorrt --out resnet50.onnx

[dim]Your own model and an array of inputs, its last layer in float:[/]
fxq quantize my_package.models:make_net --weights net.safetensors \\
  --calib-data inputs.npy --recipe onnxruntime --leave-in-float head \\
  --out net.onnx

[dim]Ranges measured as it runs, without data:[/]
fxq quantize my_package.models:make_net --input-shape 1,16,64 \\
  --recipe dynamic --out net.onnx"""

EXPLAIN_EXAMPLES = """\
[dim]Examples:[/]
fxq explain torchvision:resnet18 --recipe tensorrt
fxq explain my_package.models:make_net --recipe onnxruntime --json"""
