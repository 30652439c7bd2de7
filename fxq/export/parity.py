"""Does the file compute what the converted module computes? Run both, count the error in codes.

What an LSB is, and how many may be: fxq/compare/parity.py.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx

from fxq.compare.outputs import named_leaves, output_steps, run_once
from fxq.compare.parity import (
    MAX_LSB,
    MAX_MEAN_LSB,
    NOISE_FACTOR,
    Floors,
    OutputParity,
    compare_all,
    rounding_floors,
)
from fxq.compare.rounding_noise import FUSED, REORDERED, Noise
from fxq.errors import ExportError, InputError
from fxq.export.written_file import WrittenFile


@dataclass(frozen=True)
class Reference:
    """The converted module, inputs, and the named outputs that it makes of them, perhaps with random numbers."""

    gm: fx.GraphModule
    inputs: tuple[Any, ...]
    outputs: list[tuple[str, Tensor]]
    has_drawn: bool = False

    @classmethod
    def run(cls, gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Self:
        """Run the module, in eval mode.

        Raises:
            InputError: it does not run on these inputs.
        """
        try:
            run = run_once(gm, inputs)
            return cls(gm, inputs, run.outputs, run.has_drawn)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"the model does not run on the example inputs: {error}") from error


def check_parity(
    file: WrittenFile, reference: Reference, optimize: bool = False, noise: Noise = REORDERED
) -> tuple[OutputParity, ...]:
    """Compare the file with the module.

    Args:
        file: what is compared.
        reference: what the module makes of its inputs.
        optimize: run it with ONNX Runtime's default optimizations, as its users do, rather than as it is written.
        noise: how far rounding moves what the file computes, where it is not optimized.

    Raises:
        ExportError: ONNX Runtime does not run the file, or an output is too far off; names the output.
    """
    how = "onnxruntime, with its default optimizations," if optimize else "onnxruntime"
    inputs = [tensor for _, tensor in named_leaves(reference.inputs, "input", Tensor)]
    try:
        actual = [torch.from_numpy(array) for array in file.run(inputs, optimize)]
    except ExportError as error:
        raise ExportError(f"{error}{dtype_hint(reference.gm)}") from error
    if len(reference.outputs) != len(actual):
        raise ExportError(f"the file has {len(actual)} outputs and the model {len(reference.outputs)}")
    for (name, want), have in zip(reference.outputs, actual, strict=True):
        if want.shape != have.shape:
            shapes = f"{tuple(have.shape)} in {how} and {tuple(want.shape)} in the model"
            raise ExportError(f"output {name!r} has shape {shapes}")
    steps = output_steps(reference.gm, reference.outputs)
    parity = compare_all(reference.outputs, actual, steps)
    if all(output.is_within() for output in parity):
        return parity
    cause = "Its fusions compute something else than the file" if optimize else "An operator is translated wrongly"
    if reference.has_drawn:
        cause = "The model draws random numbers, and the file draws others: make them an input of forward, or a buffer"
    floors = _floors(parity, reference, steps, FUSED if optimize else noise)
    for output, floor in zip(parity, floors, strict=True):
        if not output.is_within(noise=floor):
            raise ExportError(
                f"{how} computes another {output.name!r} than the model: mean error {output.mean_lsb:.2f} LSB, "
                f"largest {output.max_lsb:.2f} LSB, one LSB being {output.step:.3g}; allowed are {MAX_MEAN_LSB:g} and "
                f"{MAX_LSB:g}, or {NOISE_FACTOR:g} times what rounding does to this model ({floor.mean_lsb:.2f} and "
                f"{floor.max_lsb:.2f}). {cause}; check=False writes the file anyway"
            )
    return parity


def dtype_hint(gm: fx.GraphModule) -> str:
    """Return what to do about a file that no runtime takes, where the dtype of the model's weights explains it."""
    found = {tensor.dtype for tensor in (*gm.parameters(), *gm.buffers())} & {torch.float64, torch.bfloat16}
    if not found:
        return ""
    dtype = str(found.pop()).removeprefix("torch.")
    return f"; the model computes in {dtype}, for which ONNX or its runtime lacks operators: prepare model.float()"


def _floors(parity: tuple[OutputParity, ...], reference: Reference, steps: list[float], noise: Noise) -> Floors:
    def is_explained(floors: Floors) -> bool:
        return all(output.is_within(noise=floor) for output, floor in zip(parity, floors, strict=True))

    return rounding_floors(reference.gm, reference.inputs, reference.outputs, steps, is_explained, noise)
