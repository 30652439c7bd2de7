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

    TensorRT must know open sizes: from --shape, or from the bounds that fxq stored in the file (fxq quantize
    --dynamic x:0=batch:1-32).

    Exit codes: 0 no rule is broken, 1 one is, 2 the file cannot be verified.
    """
    from fxq.cli.verify import run_verify

    run_verify(file, target, tuple(shape or ()), as_json)


BENCH_EXAMPLES = """\
[dim]Example:[/]
fxq bench int8.onnx float.onnx --shape x:1x3x224x224 --threads 2"""

OnnxPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILES", help="The ONNX file of interest, then those to compare it with.", show_default=False
    ),
]
RuntimeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime", metavar="NAME", help="onnxruntime or openvino. Repeat for more.", show_default="all installed"
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads of one run.", show_default="the runtime's choice")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Counted runs of each file.")]
WarmUp = Annotated[int, typer.Option(metavar="N", min=0, help="Runs before them.")]


def bench(  # noqa: PLR0913 - typer makes an option of each argument
    files: OnnxPaths,
    *,
    runtime: RuntimeNames = None,
    shape: Shape = None,
    threads: Threads = None,
    rounds: Rounds = 50,
    warm_up: WarmUp = 5,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Time ONNX files against each other, in turn, in each runtime that is installed."""
    from fxq.cli.verify import BenchJob, run_bench

    job = BenchJob(tuple(files), tuple(runtime) if runtime else None, tuple(shape or ()), threads, rounds, warm_up)
    run_bench(job, as_json)
