"""Does the file compute what the converted module computes? Run both, count the error in codes.

One LSB of an output is the step of its own quantizer where it comes from one, else max|output| / hi, hi being 127 for
8 bits and 7 where the model has 4-bit activations: what one step of a tensor of that range is worth, so the figure
depends neither on the model's units nor on its bits.

Tolerance. Two correct runtimes do not agree on every bit: they add up a convolution in another order, a value that
lies between two codes falls to one side here and to the other there, and each such flip moves what follows by a
fraction of a code. Flips are rare and have no preferred sign, so the mean stays below one LSB; a single value may
collect several. A range that is measured at run time adds nothing: its step moves with the last bits of the extremes,
and that, too, shows only in values that lie between two codes. A wrong scale, axis, zero point or weight is off by many
LSB everywhere. Hence: mean at most 1 LSB, and at most 16 LSB for any value. Untrained deep models amplify flips; for
them the bound is three times what rounding alone does to the model (rounding_noise.py), which is measured only when the
first bound fails.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from fxq.errors import ExportError, InputError, RuntimeRefusedError
from fxq.export.capture import evaluated
from fxq.export.names import named_tensors
from fxq.export.options import OutputParity
from fxq.export.rounding_noise import run_with_rounding_noise
from fxq.graph.modules import call
from fxq.quant.qdq_ops import QUANTIZE
from fxq.runtimes import get_runtime

MAX_MEAN_LSB = 1.0
MAX_LSB = 16.0
NOISE_FACTOR = 3.0
# Which codes flip is chance, and with few inputs one draw may hit none that matter: the worst of several counts.
NOISE_DRAWS = 5


@dataclass(frozen=True)
class Reference:
    """The converted module, inputs, and the named outputs that it makes of them."""

    gm: fx.GraphModule
    inputs: tuple[Any, ...]
    outputs: list[tuple[str, Tensor]]

    @classmethod
    def run(cls, gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Self:
        """Run the module, in eval mode.

        Raises:
            InputError: it does not run on these inputs.
        """
        try:
            with evaluated(gm), torch.no_grad():
                return cls(gm, inputs, named_tensors(call(gm, *inputs), "output"))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"the model does not run on the example inputs: {error}") from error


def check_parity(model: ir.Model, path: Path, reference: Reference) -> tuple[OutputParity, ...]:
    """Compare the file with the module; ``model`` is the file at ``path``, loaded.

    Raises:
        ExportError: ONNX Runtime does not run the file, or an output is too far off; names the output.
    """
    actual = _run_onnxruntime(model, path, reference.inputs)
    if len(reference.outputs) != len(actual):
        raise ExportError(f"the file has {len(actual)} outputs and the model {len(reference.outputs)}")
    hi = _codes_above_zero(reference.gm)
    steps = [
        _quantizer_step(value) or _float_step(_as_numpy(want), hi)
        for value, (_, want) in zip(model.graph.outputs, reference.outputs, strict=True)
    ]
    parity = _compare_all(reference.outputs, actual, steps)
    if not all(_is_close(output) for output in parity):
        _check_against_noise(parity, reference, steps)
    return parity


def _check_against_noise(parity: tuple[OutputParity, ...], reference: Reference, steps: list[float]) -> None:
    draws = []
    for seed in range(NOISE_DRAWS):
        with evaluated(reference.gm), torch.no_grad():
            noisy = run_with_rounding_noise(reference.gm, reference.inputs, seed)
        draws.append(_compare_all(reference.outputs, [_as_numpy(output) for _, output in noisy], steps))
    for output, *floors in zip(parity, *draws, strict=True):
        floor = max(floors, key=lambda drawn: drawn.mean_lsb)
        if not _is_close(output, floor):
            raise ExportError(
                f"onnxruntime computes another {output.name!r} than the model: mean error {output.mean_lsb:.2f} LSB, "
                f"largest {output.max_lsb:.2f} LSB, one LSB being {output.step:.3g}; allowed are {MAX_MEAN_LSB:g} and "
                f"{MAX_LSB:g}, or {NOISE_FACTOR:g} times what rounding does to this model ({floor.mean_lsb:.2f} and "
                f"{floor.max_lsb:.2f}). An operator is translated wrongly; check=False writes the file anyway"
            )


def _is_close(output: OutputParity, noise: OutputParity | None = None) -> bool:
    mean, largest = (noise.mean_lsb, noise.max_lsb) if noise else (0.0, 0.0)
    return output.mean_lsb <= max(MAX_MEAN_LSB, NOISE_FACTOR * mean) and output.max_lsb <= max(
        MAX_LSB, NOISE_FACTOR * largest
    )


def _codes_above_zero(gm: fx.GraphModule) -> int:
    """Return hi of the coarsest activation quantizer of a lowered graph: half its codes, 127 for int8 and uint8."""
    spans = [int(node.args[5]) - int(node.args[4]) for node in gm.graph.nodes if node.target is QUANTIZE]
    return min(spans, default=255) // 2


def _run_onnxruntime(model: ir.Model, path: Path, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    # With several threads each quantizes the hidden states of its own samples, with their own range.
    threads = 1 if any(node.op_type == "DynamicQuantizeLSTM" for node in model.graph) else None
    # The file is judged, not onnxruntime's fusions of it.
    runtime = get_runtime("onnxruntime", optimize=False, threads=threads)
    try:
        return runtime.run(path, [_as_numpy(tensor) for _, tensor in named_tensors(inputs, "input")])
    except (RuntimeRefusedError, InputError) as error:
        raise ExportError(f"{error} (check=False writes a file for another runtime unchecked)") from error


def _quantizer_step(value: ir.Value) -> float | None:
    """Return the step of the quantizer an output comes from, None where it comes from none."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[1] is None:
        return None
    scale = producer.inputs[1].const_value
    return None if scale is None or scale.size != 1 else float(scale.numpy())


def _compare_all(
    expected: list[tuple[str, Tensor]], actual: list[np.ndarray], steps: list[float]
) -> tuple[OutputParity, ...]:
    return tuple(
        _compare(name, _as_numpy(want), have, step)
        for (name, want), have, step in zip(expected, actual, steps, strict=True)
    )


def _float_step(output: np.ndarray, hi: int) -> float:
    values = np.abs(output.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0)) / hi or 1.0


def _compare(name: str, want: np.ndarray, have: np.ndarray, step: float) -> OutputParity:
    if want.shape != have.shape:
        raise ExportError(f"output {name!r} has shape {have.shape} in onnxruntime and {want.shape} in the model")
    want, have = want.astype(np.float64), have.astype(np.float64)
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    with np.errstate(invalid="ignore"):  # inf - inf, where they are the same
        error = np.where(same, 0.0, np.abs(want - have))
    error = np.where(np.isnan(error), np.inf, error)
    if not error.size:
        error = np.zeros(1)
    largest, mean = float(error.max()), float(error.mean())
    return OutputParity(name, step, largest / step, mean / step, largest)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return np.asarray(tensor.detach().cpu().numpy())
