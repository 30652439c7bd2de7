"""What the command line says about the form of the file: open sizes, names and opset."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from fxq.cli.dynamic_spec import DynamicDim, DynamicSpec
from fxq.cli.example_inputs import input_names
from fxq.errors import InputError, ModelError


@dataclass(frozen=True)
class FileForm:
    """How the file is to look.

    Args:
        static_batch: for batch size 1.
        dynamic: the dimensions that stay open, by input, and no others; none for the batch.
        inputs, outputs: names in the file; None for those of the model.
        opset: None for the lowest that holds it.
        float_dtype: of all that is not quantized: float32, float16 or bfloat16.
        keep_io_types: inputs and outputs stay float32.
    """

    static_batch: bool = False
    dynamic: tuple[DynamicSpec, ...] = ()
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    opset: int | None = None
    float_dtype: str = "float32"
    keep_io_types: bool = False

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``fxq.export_onnx``."""
        return {
            "dynamic_batch": False if self.static_batch else None,
            "dynamic_shapes": self.dynamic_shapes(),
            "input_names": self.inputs,
            "output_names": self.outputs,
            "opset": self.opset,
            "float_dtype": getattr(torch, self.float_dtype),
            "keep_io_types": self.keep_io_types,
        }

    def dynamic_shapes(self) -> Mapping[str, Any] | None:
        """Return what ``fxq.export_onnx`` takes; dimension 0 without a name counts samples."""
        if not self.dynamic:
            return None
        return {spec.name: {one.dim: _written(one) for one in spec.dims} for spec in self.dynamic}

    def check(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Refuse, before long work, what does not fit the model's inputs.

        Raises:
            ModelError: --dynamic names what is no input, or no dimension of it.
        """
        names = input_names(model)
        for spec in self.dynamic:
            if spec.name not in names:
                close = difflib.get_close_matches(spec.name, names, n=3, cutoff=0.4)
                hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
                takes = f"{type(model).__name__} takes {', '.join(names) or 'none by name'}"
                raise ModelError(f"--dynamic {spec.name}: there is no input {spec.name!r}; {hint}{takes}")
            if sum(spec.name == other.name for other in self.dynamic) > 1:
                raise ModelError(f"--dynamic {spec.name} is given twice: write its dimensions in one, such as x:0,2,3")
        # The ONNX libraries take as long to import as torch.
        from fxq.export.dynamic_shapes import open_shapes  # noqa: PLC0415

        if self.dynamic:
            try:
                open_shapes(self.dynamic_shapes(), False if self.static_batch else None, names, inputs)
            except InputError as error:
                raise ModelError(str(error)) from error
        if self.inputs is not None and len(self.inputs) != len(inputs):
            count = f"{len(inputs)}, {', '.join(names[: len(inputs)])}"
            raise ModelError(f"--input-names has {len(self.inputs)} names for {count}: give one for each")


def _written(one: DynamicDim) -> Any:
    name = one.size or ("batch" if one.dim == 0 else "")
    if not name:
        return Dim.DYNAMIC
    return name if one.most is None else Dim(name, min=one.least, max=one.most)
