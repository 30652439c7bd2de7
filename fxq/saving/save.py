"""Save: a prepared, calibrated, trained or converted model as one file."""

import os
from pathlib import PurePath

from torch.fx import GraphModule

from fxq.errors import ExportError
from fxq.output_file import OutputFile
from fxq.saving.pack import pack
from fxq.saving.saved_file import write_packed
from fxq.surroundings import in_plain_surroundings


@in_plain_surroundings
def save(model: GraphModule, path: str | os.PathLike[str]) -> None:
    """Write a prepared or converted model as one safetensors file, which ``fxq.load`` makes a model of again.

    In it: the recipe, plans with their reasons, weights under the model's own names, ranges, what calibrators have seen
    (so that ``fit_ranges`` works), what passes with data changed, and the switches of the quantizers. No data, no
    example inputs, no code.

    Args:
        model: the result of ``prepare``, calibrated or trained or not, or of ``convert``.
        path: such as ``"model.fxq"``; written under a temporary name first, so never half a file.

    Raises:
        StageError: fxq did not make the model.
        SavedModelError: something in it cannot be stored, such as a module that a plugin's pass put in.
        RecipeError: a rule of the recipe is a predicate, which is code.
        ExportError: nothing can be written there.
    """
    packed = pack(model)
    check_savable(path)
    write_packed(packed, path)


def check_savable(path: str | os.PathLike[str]) -> None:
    """Raise an ExportError if no model can be saved there."""
    if isinstance(path, str | PurePath) and PurePath(path).suffix.lower() == ".onnx":
        raise ExportError(f"cannot write {path}: fxq.save writes no ONNX (fxq.export_onnx does); name it model.fxq")
    with OutputFile(path).staging():
        pass
