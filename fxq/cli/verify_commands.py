"""The commands ``fxq verify`` and ``fxq bench``: their options. What they do lies in ``verify.py``."""

from pathlib import Path
from typing import Annotated

import typer

from fxq.cli import options

VERIFY_EXAMPLES = """\
[dim]Examples:[/]
fxq verify resnet50.onnx --target onnxruntime
fxq verify resnet50.onnx --target tensorrt --shape x:1x3x224x224
fxq verify model.onnx --target tensorrt \\
  --shape x:1x3x224x224/8x3x224x224/32x3x224x224 --json"""

Target = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the file is for: [bold]tensorrt[/], [bold]onnxruntime[/], [bold]openvino[/], [bold]dynamic[/], "
        "[bold]weight_only[/], another target (see fxq targets), or a .toml file.",
        show_default=False,
    ),
]
OnnxPath = Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, whoever wrote it.", show_default=False)]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:SHAPE",
        help="Of an input with open sizes: x:1x3x224x224, or its smallest, usual and largest shape, "
        "x:1x3x224x224/8x3x224x224/32x3x224x224. Repeat for each input.",
        show_default=False,
    ),
]


def verify(
    file: OnnxPath,
    *,
    target: Target,
    shape: Shape = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what keeps an ONNX file from running in integers, and ask the runtime itself.

    Exit codes: 0 no rule is broken, 1 one is, 2 the file cannot be verified.
    """
    from fxq.cli.verify import run_verify

    run_verify(file, target, tuple(shape or ()), as_json)
