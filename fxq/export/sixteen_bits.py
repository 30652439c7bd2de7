"""Give a checked file a float side of 16 bits, and check it again.

The file in float32 is right before this begins, so what is asked here is only what 16 bits do: values beyond what they
hold are looked for on the samples and stay in float32; outputs may differ from the model's by what rounding each result
to 16 bits does to them (parity.py measures it).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.compare.outputs import named_leaves
from fxq.compare.rounding_noise import Noise
from fxq.errors import ExportError, InputError
from fxq.export.channel_scales import move_channel_scales
from fxq.export.file_quality import fitting_parts, measure_file
from fxq.export.float_side import write_float_side
from fxq.export.in_float32 import DTYPES, FloatSide
from fxq.export.open_shapes import OpenShapes
from fxq.export.options import ExportOptions
from fxq.export.parity import Reference, check_parity
from fxq.export.qdq_rules import check_qdq
from fxq.export.value_ranges import measure_values
from fxq.export.written_file import FLOAT_DTYPE, WrittenFile


def check_float_dtype(gm: fx.GraphModule, dtype: torch.dtype | None) -> bool:
    """Return whether the file's float side is to be another than the model's.

    Raises:
        InputError: no dtype that it can be, or the model has a float side of 16 bits itself.
    """
    if dtype is None or dtype is torch.float32:
        return False
    if dtype not in DTYPES:
        raise InputError(f"float_dtype must be torch.float16, torch.bfloat16 or torch.float32, got {dtype!r}")
    for name, tensor in (*gm.named_parameters(), *gm.named_buffers()):
        if tensor.dtype in (torch.float64, *DTYPES):
            raise InputError(
                f"float_dtype changes the float32 of a model, and {name!r} of this one is {tensor.dtype}: prepare "
                "model.float(), or leave float_dtype out and keep the model's dtype"
            )
    return True


def change_float_side(
    model: ir.Model,
    save: Callable[[ir.Model, Path], None],
    path: Path,
    reference: Reference,
    options: ExportOptions,
    shapes: OpenShapes,
) -> dict[str, Any]:
    """Write ``model`` with another float side over the checked file at ``path``; it is modified.

    Args:
        model: what the file holds.
        save: writes a model to a path.
        path: the file.
        reference: the converted module and what it makes of the example inputs.
        options: of the export; ``float_dtype`` is one of DTYPES.
        shapes: which sizes are open in the file.

    Returns:
        Fields of the report.

    Raises:
        ExportError: as of :func:`write_float_side`, or what comes out is not what the model computes.
    """
    assert options.float_dtype is not None
    dtype = DTYPES[options.float_dtype]
    before = None
    if options.check and options.float_reference is not None:
        before = measure_file(
            WrittenFile(path, is_for_others=True), reference.gm, reference.inputs, options.float_reference, shapes
        )
    if options.rules.channel_scales_behind:
        move_channel_scales(model)
    largest = {}
    if options.check:
        save(model, path)
        largest = measure_values(path, _samples(reference, options, shapes))
    in_float32 = write_float_side(model, FloatSide(dtype, options.keep_io_types, largest))
    model.metadata_props[FLOAT_DTYPE] = dtype.name.lower()
    save(model, path)
    found: dict[str, Any] = {"float_dtype": dtype.name.lower(), "in_float32": in_float32, "float32_quality": before}
    if options.check:
        found.update(parity=_check(path, reference, options), optimized_parity=())
    return found


def _samples(reference: Reference, options: ExportOptions, shapes: OpenShapes) -> list[list[Tensor]]:
    runs = [_tensors(reference.inputs)]
    if options.float_reference is not None:
        parts = fitting_parts(reference.gm, reference.inputs, options.float_reference, shapes)
        runs += [part.tensors for part in parts]
    return runs


def _check(path: Path, reference: Reference, options: ExportOptions) -> Any:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"with {options.float_dtype} the file is not valid ONNX: {error}") from error
    file = WrittenFile(path)
    check_qdq(file.model, options.rules)
    assert options.float_dtype is not None
    units = 2 * torch.finfo(options.float_dtype).eps / torch.finfo(torch.float32).eps
    if not options.keep_io_types:
        reference = Reference.run(reference.gm, _rounded(reference.inputs, options.float_dtype))
    return check_parity(file, reference, noise=Noise(units))


def _rounded(inputs: Any, dtype: torch.dtype) -> Any:
    """Return inputs as the file takes them, in their own dtype."""
    return pytree.tree_map_only(
        Tensor, lambda value: value.to(dtype).to(value.dtype) if value.is_floating_point() else value, inputs
    )


def _tensors(inputs: Any) -> list[Tensor]:
    return [tensor.cpu() for _, tensor in named_leaves(inputs, "input", Tensor)]
