"""The float model as torch writes it, to be timed beside the quantized file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxq.batches import Inputs
from fxq.errors import ExportError
from fxq.graph.quiet import quiet_torch
from fxq.process_lock import PROCESS_LOCK


def write_float(model: nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    """Write the model for inputs of these sizes, none of them open.

    Raises:
        ExportError: torch does not export it.
    """
    from fxq.export.translate import GELU_OPSET  # noqa: PLC0415 - the ONNX libraries

    args, kwargs = Inputs(inputs, {}).fitting(model)
    try:
        with PROCESS_LOCK, quiet_torch(), torch.no_grad():
            torch.onnx.export(model, args, path, kwargs=kwargs, opset_version=GELU_OPSET, verbose=False)
    except Exception as error:  # torch's exporter raises of many kinds, and so may the model
        raise ExportError(f"torch.onnx.export does not take {type(model).__name__}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong first: torch wraps it in how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
