"""The options that say what an ONNX file looks like."""

from typing import Annotated

import typer

from fxq.cli.dynamic_spec import DynamicSpec, parse_dynamic_spec
from fxq.cli.options import OUTPUT, one_of


def _dynamic_spec(text: str) -> DynamicSpec:
    try:
        return parse_dynamic_spec(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


StaticBatch = Annotated[
    bool,
    typer.Option(
        "--static-batch",
        help="Write the file for batch size 1. Without it the batch is dynamic, for which TensorRT's tools want an "
        "optimization profile (trtexec --minShapes, --optShapes, --maxShapes).",
        rich_help_panel=OUTPUT,
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        parser=_dynamic_spec,
        metavar="NAME:DIMS",
        help="Leave these dimensions of an input open, and no others: x:0,2,3, with names for the sizes x:0,2=height,"
        "3=width (equal where the name is) and bounds ids:0,1=words:1-512. Repeat for each input. The file is run at "
        "other sizes. Dimension 0 counts samples.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
FloatDtype = Annotated[
    str,
    typer.Option(
        parser=one_of("float32", "float16", "bfloat16"),
        metavar="DTYPE",
        help="[bold]float32[/], [bold]float16[/] or [bold]bfloat16[/]: the dtype of all that is not quantized, which "
        "TensorRT runs as the file says. What needs float32 stays, with its reason.",
        rich_help_panel=OUTPUT,
    ),
]
KeepIoTypes = Annotated[
    bool,
    typer.Option(
        "--keep-io-types",
        help="With --float-dtype, leave inputs and outputs in float32.",
        rich_help_panel=OUTPUT,
    ),
]
InputNames = Annotated[
    str | None,
    typer.Option(
        parser=_names,
        metavar="NAMES",
        help="Names of all inputs in the file, in order, such as image,mask.",
        show_default="the model's",
        rich_help_panel=OUTPUT,
    ),
]
OutputNames = Annotated[
    str | None,
    typer.Option(
        parser=_names,
        metavar="NAMES",
        help="Names of all outputs in the file, in order.",
        show_default="output, output_1, ...",
        rich_help_panel=OUTPUT,
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="ONNX opset of the file.",
        show_default="the lowest that holds it",
        rich_help_panel=OUTPUT,
    ),
]
