"""Does the file compute what the converted module computes? Run both, count the error in codes.

What an LSB is, and how many may be: fxq/compare/parity.py.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx

from fxq.compare.outputs import named_leaves, output_steps, run_once
from fxq.compare.parity import (
    FEW,
    MAX_BEYOND,
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

    def is_right(output: OutputParity, floor: OutputParity | None = None) -> bool:
        return output.is_within(noise=floor) and (optimize or output.is_rarely_beyond(floor))

    def is_explained(floors: Floors) -> bool:
        return all(map(is_right, parity, floors))

    if all(map(is_right, parity)):
        return parity
    cause = "Its fusions compute something else than the file" if optimize else "An operator is translated wrongly"
    if reference.has_drawn:
        cause = "The model draws random numbers, and the file draws others: make them an input of forward, or a buffer"
    noise = FUSED if optimize else noise
    floors = rounding_floors(reference.gm, reference.inputs, reference.outputs, steps, is_explained, noise)
    wrong = next((pair for pair in zip(parity, floors, strict=True) if not is_right(*pair)), None)
    if wrong is not None:
        raise ExportError(f"{how} {_told(*wrong, is_fused=optimize)}. {cause}; check=False writes the file anyway")
    return parity


def dtype_hint(gm: fx.GraphModule) -> str:
    """Return what to do about a file that no runtime takes, where the dtype of the model's weights explains it."""
    found = {tensor.dtype for tensor in (*gm.parameters(), *gm.buffers())} & {torch.float64, torch.bfloat16}
    if not found:
        return ""
    dtype = str(found.pop()).removeprefix("torch.")
    return f"; the model computes in {dtype}, for which ONNX or its runtime lacks operators: prepare model.float()"


def _told(output: OutputParity, floor: OutputParity, is_fused: bool) -> str:
    def figures(one: OutputParity) -> str:
        rarely = "" if is_fused else f", {one.beyond:.2%} of the values off by more than one"
        return f"mean error {one.mean_lsb:.2f} LSB, largest {one.max_lsb:.2f}{rarely}"

    allowed = f"{MAX_MEAN_LSB:g} and {MAX_LSB:g}"
    if not is_fused:
        allowed = f"{MAX_MEAN_LSB:g}, {MAX_LSB:g} and {MAX_BEYOND:.2%} or {FEW} values"
    return (
        f"computes another {output.name!r} than the model: {figures(output)}, one LSB being {output.step:.3g}; allowed "
        f"are {allowed}, or {NOISE_FACTOR:g} times what rounding does to this model ({figures(floor)})"
    )
