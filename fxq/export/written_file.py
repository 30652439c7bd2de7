"""A written file, and what ONNX Runtime makes of it."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fxq.errors import ExportError, InputError, RuntimeRefusedError
from fxq.export.emulation import emulate_bfloat16, has_bfloat16
from fxq.runtimes.onnxruntime import OnnxRuntime

# Where the float side was written in another dtype than the model's, the file says in which.
FLOAT_DTYPE = "fxq.float_dtype"


class WrittenFile:
    """A file that is complete; runs alike share one session, whose optimizations take longer than most runs.

    Args:
        path: of the file, which must not change meanwhile.
        is_for_others: ONNX Runtime runs it to check it, and never as its users would.
    """

    def __init__(self, path: Path, is_for_others: bool = False) -> None:
        self.path = path
        self._is_for_others = is_for_others
        self._session: tuple[OnnxRuntime, Callable[[list[np.ndarray]], list[np.ndarray]]] | None = None

    @cached_property
    def model(self) -> ir.Model:
        """What it holds."""
        return ir.load(self.path)

    @property
    def is_optimized_right(self) -> bool:
        """Whether ONNX Runtime's optimizations know the file's dtypes: what they make of float8 is wrong.

        Such a file, and one with a float side of 16 bits, is for other runtimes, and is judged as it is written. In
        those of opset 21 and later, which bfloat16 needs, they give quantizers that they move the wrong zero point.
        """
        if self._is_for_others or FLOAT_DTYPE in self.model.metadata_props:
            return False
        values = (value.const_value for value in self.model.graph.initializers.values())
        return not any(value is not None and value.dtype is ir.DataType.FLOAT8E4M3FN for value in values)

    def run(self, inputs: Sequence[Tensor], optimize: bool = False, without: Sequence[str] = ()) -> list[np.ndarray]:
        """Return what ONNX Runtime makes of the file; bfloat16 is emulated, for it has no kernels.

        Args:
            inputs: in the file's order; floats in another dtype than it declares are rounded.
            optimize: with ONNX Runtime's default optimizations.
            without: but for these, by its names.

        Raises:
            ExportError: it does not load or run the file.
        """
        runtime = OnnxRuntime(optimize=optimize, threads=self._threads(), without=tuple(without))
        dtypes = [value.dtype for value in self.model.graph.inputs]
        arrays = [_as_numpy(tensor, dtype) for tensor, dtype in zip(inputs, dtypes, strict=True)]
        try:
            if FLOAT_DTYPE in self.model.metadata_props and has_bfloat16(self.model):
                return self._run_emulated(runtime, arrays)
            if self._session is None or self._session[0] != runtime:
                self._session = None  # one at a time: each holds the weights
                self._session = runtime, runtime.load(self.path)
            return self._session[1](arrays)
        except (RuntimeRefusedError, InputError) as error:
            how = "with its default optimizations, " if optimize else ""
            raise ExportError(f"{how}{error} (check=False writes a file for another runtime unchecked)") from error

    def _run_emulated(self, runtime: OnnxRuntime, arrays: list[np.ndarray]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            emulated = ir.load(self.path)
            emulate_bfloat16(emulated)
            path = Path(folder) / self.path.name
            ir.save(emulated, path, external_data=f"{path.name}.data")
            return runtime.run(path, arrays)

    def _threads(self) -> int | None:
        """Return how many threads ONNX Runtime may take for the file; None for as many as it likes."""
        # With several threads each quantizes the hidden states of its own samples, with their own range.
        return 1 if any(node.op_type == "DynamicQuantizeLSTM" for node in self.model.graph) else None


def _as_numpy(tensor: Tensor, dtype: ir.DataType | None) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and dtype == ir.DataType.FLOAT16:
        tensor = tensor.half()
    elif tensor.is_floating_point() and dtype == ir.DataType.BFLOAT16:  # numpy has none
        tensor = tensor.bfloat16()
    return np.asarray((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
