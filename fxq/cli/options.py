"""The options of the commands, and examples of their use."""

from pathlib import Path
from typing import Annotated

import typer

IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"

_DATA, _IMAGES, _RECIPE, _OUTPUT = "Calibration data", "Images", "How to quantize", "Output"


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as {IMAGENET_MEAN}") from error


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no shape such as 1,3,224,224")
    return tuple(int(part) for part in parts)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="[bold]package.module:callable[/] (a function or class without arguments; the current directory is "
        "searched first), [bold]torchvision:NAME[/] or [bold]timm:NAME[/]. Nothing is downloaded.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights, .pt or .safetensors; only tensors are read.", show_default=False),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Outputs of a torchvision or timm model.", show_default=False),
]
CalibData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A folder of images, a .npy array, or an .npz file with an array for each input. Typical inputs, "
        "prepared as in training; some hundred are enough. The recipes dynamic and weight_only need none.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Samples a batch.", rich_help_panel=_DATA)]
NumSamples = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Use at most so many images or rows, evenly spaced.", rich_help_panel=_DATA),
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
        help="Subtracted from values in 0 to 1. A single number: grey images.",
        rich_help_panel=_IMAGES,
    ),
]
Std = Annotated[str, typer.Option(parser=_numbers, metavar="NUMBERS", help="Then divided by.", rich_help_panel=_IMAGES)]
Recipe = Annotated[
    str,
    typer.Option(
        help="[bold]tensorrt[/], [bold]onnxruntime[/], [bold]openvino[/]; without data [bold]dynamic[/], "
        "[bold]weight_only[/], [bold]weight_only_int4[/]; the name of another target (see fxq targets); or a .toml "
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
LeaveInFloat = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Leave matching modules in float, such as 'fc' or 'layer4.*'. Repeat for more.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Run the model before and after each pass that must keep numbers.", rich_help_panel=_RECIPE
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FILE", help="The .onnx file to write.", show_default=False, rich_help_panel=_OUTPUT)
]
StaticBatch = Annotated[
    bool,
    typer.Option(
        "--static-batch",
        help="Write the file for batch size 1. Without it the batch is dynamic, for which TensorRT's tools want an "
        "optimization profile (trtexec --minShapes, --optShapes, --maxShapes).",
        rich_help_panel=_OUTPUT,
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Print what became of each operation, and why.", rich_help_panel=_OUTPUT)
]
InputShape = Annotated[
    str | None,
    typer.Option(
        parser=_shape,
        metavar="SHAPE",
        help="Of one floating point input, such as 1,3,224,224: an example for models whose Python tests shapes, and "
        "in place of calibration data where none is needed.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print plain data for programs.")]

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
