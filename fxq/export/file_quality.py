"""How good the file is: what ONNX Runtime makes of it, as its users run it, against the float model."""

import inspect
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.compare.outputs import Named
from fxq.compare.quality import Quality, measure
from fxq.export.parity import is_optimized_right, run_onnxruntime, threads_for
from fxq.float_reference import FloatReference

# With a static batch each run loads the file.
_MOST_RUNS = 4


def measure_file(
    path: Path,
    model: ir.Model,
    gm: fx.GraphModule,
    examples: tuple[Any, ...],
    reference: FloatReference,
    batch: int,
) -> Quality | None:
    """Run the file on the samples of ``reference``; None where they do not fit its declared sizes.

    Args:
        path: the file.
        model: the file, loaded.
        gm: the converted model.
        examples: what the file was traced with.
        reference: samples, and what the float model makes of them.
        batch: how many samples the file takes at once; 0 for any number.
    """
    joined = _joined(gm, reference)
    if joined is None:
        return None
    leaves, outputs = joined
    wanted = [leaf for leaf in pytree.tree_leaves(examples) if isinstance(leaf, Tensor)]
    if [(leaf.shape[1:], leaf.dtype) for leaf in leaves] != [(leaf.shape[1:], leaf.dtype) for leaf in wanted]:
        return None
    samples = len(leaves[0])
    size = batch or samples
    starts = range(0, samples - size + 1, size)[:_MOST_RUNS]
    expected, found = [], []
    for start in starts:
        part = [leaf[start : start + size] for leaf in leaves]
        arrays = run_onnxruntime(path, part, is_optimized_right(model), threads_for(model))
        expected.append([(name, value[start : start + size]) for name, value in outputs])
        found.append([(name, torch.from_numpy(array)) for (name, _), array in zip(outputs, arrays, strict=True)])
    return measure(expected, found, size * len(starts), reference.against) if starts else None


def _joined(gm: fx.GraphModule, reference: FloatReference) -> tuple[list[Tensor], Named] | None:
    """Return all samples as one batch, and the outputs for it; None where sizes differ, or something is not batched."""
    counts = [one.samples for one in reference.inputs]
    bound = [inspect.signature(gm.forward).bind(*one.args, **one.kwargs) for one in reference.inputs]
    leaves = [
        [leaf for leaf in pytree.tree_leaves(tuple(one.arguments.values())) if isinstance(leaf, Tensor)]
        for one in bound
    ]
    values = [[value for _, value in named] for named in reference.outputs]
    for count, tensors in zip(
        counts, [first + second for first, second in zip(leaves, values, strict=True)], strict=True
    ):
        if not count or any(not tensor.dim() or len(tensor) != count for tensor in tensors):
            return None
    if any(
        {tensor.shape[1:] for tensor in same} != {same[0].shape[1:]}
        for group in (leaves, values)
        for same in zip(*group, strict=False)
    ):
        return None
    names = [name for name, _ in reference.outputs[0]]
    inputs = [torch.cat(same).cpu() for same in zip(*leaves, strict=True)]
    return inputs, [(name, torch.cat(same).cpu()) for name, same in zip(names, zip(*values, strict=True), strict=True)]
