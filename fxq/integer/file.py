"""Write an integer model for whoever runs it without PyTorch: JSON, and a file of tensors (safetensors) beside it."""

import json
import os
from pathlib import Path

from torch.fx import GraphModule

from fxq.batches import ExampleInputs, as_positional
from fxq.errors import ExportError, InputError
from fxq.integer.description import describe
from fxq.output_file import OutputFile
from fxq.stage import Stage
from fxq.state import require_state


def export_integer(
    integer: GraphModule, path: str | os.PathLike[str], example_inputs: ExampleInputs = None
) -> tuple[Path, Path]:
    """Write an integer model as plain data: operators, sizes and numbers in ``path``, tensors beside it.

    ``model.json`` says in ``nodes`` what is computed, in order: the operators of :mod:`fxq.quant.ops`, with their
    arguments by name, "cat", "reshape" and "gather". ``inputs`` are codes, ``outputs`` integers, with scale and zero
    point to quantize the one and dequantize the other; what the model computes in float before and behind is named in
    ``left_in_float`` and not described. ``model.safetensors`` has the tensors. ``examples/integer_c`` makes C of them.

    Args:
        integer: the result of ``fxq.to_integer``.
        path: the .json file.
        example_inputs: of the sizes to write; None for those of ``fxq.prepare``.

    Returns:
        Both paths.

    Raises:
        ExportError: a file cannot be written, or the name does not end with .json.
        InputError: there are no example inputs.
        StageError: this is no integer model.
    """
    state = require_state(integer, Stage.INTEGER, "export_integer")
    inputs = as_positional(integer, example_inputs) or state.settings.example_inputs
    if inputs is None:
        raise InputError("export_integer runs the model once: give it example_inputs, or give them to prepare()")
    output = OutputFile(path)
    if output.path.suffix != ".json":
        raise ExportError(
            f"cannot write {path}: the file is JSON, name it .json; its tensors go to a .safetensors beside it"
        )
    tensors = OutputFile(output.path.with_suffix(".safetensors"))
    description = describe(integer, inputs)
    import safetensors.torch  # noqa: PLC0415 - only writing needs it

    with tensors.staging() as folder, output.staging() as other:
        staged, text = folder / tensors.real.name, other / output.real.name
        safetensors.torch.save_file(description.tensors, staged)
        data = {**description.data, "tensors": tensors.path.name}
        text.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        tensors.place(staged)
        output.place(text)
    return output.path, tensors.path
