"""How good the file is: what ONNX Runtime makes of it, as its users run it, against the float model."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.compare.outputs import Named
from fxq.compare.quality import Quality
from fxq.export.open_shapes import OpenShapes
from fxq.export.written_file import WrittenFile
from fxq.float_reference import FloatReference, run_all
from fxq.graph.moved import follow_move

# With a static batch each run loads the file.
_MOST_RUNS = 4


class Part(NamedTuple):
    """Samples that fit a file: its inputs in order, what the float model made of them, how many, and as it got them."""

    tensors: list[Tensor]
    outputs: Named
    samples: int
    inputs: Inputs


def measure_file(
    file: WrittenFile,
    gm: fx.GraphModule,
    examples: tuple[Any, ...],
    reference: FloatReference,
    shapes: OpenShapes,
    without: Sequence[str] | None = (),
) -> Quality | None:
    """Run the file on the samples of ``reference``, batch by batch as the float model ran on them.

    Args:
        file: what is measured.
        gm: the converted model.
        examples: what the file was traced with.
        reference: samples, and what the float model makes of them.
        shapes: which dimensions of the examples are open in the file.
        without: these of ONNX Runtime's optimizations; None for as it is written.

    Returns:
        None where the samples do not fit the sizes that the file declares.
    """

    def run(part: Part) -> list[Tensor]:
        is_optimized = without is not None and file.is_optimized_right
        return [torch.from_numpy(array) for array in file.run(part.tensors, is_optimized, without or ())]

    return _measure(run, fitting_parts(gm, examples, reference, shapes), reference)


def measure_module(
    gm: fx.GraphModule, examples: tuple[Any, ...], reference: FloatReference, shapes: OpenShapes
) -> Quality | None:
    """Run the converted model on what :func:`measure_file` runs its file on; the arguments are the same."""

    def run(part: Part) -> list[Tensor]:
        (found,) = run_all(gm, follow_move(gm, (part.inputs,)))
        return [value.cpu() for _, value in found]

    return _measure(run, fitting_parts(gm, examples, reference, shapes), reference)


def _measure(run: Callable[[Part], list[Tensor]], parts: Iterator[Part], reference: FloatReference) -> Quality | None:
    expected: list[Named] = []
    found: list[Named] = []
    samples = 0
    for part in parts:
        expected.append(part.outputs)
        found.append([(name, value) for (name, _), value in zip(part.outputs, run(part), strict=True)])
        samples += part.samples
    is_comparable = all(
        want.shape == have.shape
        for wants, haves in zip(expected, found, strict=True)
        for want, have in zip(_values(wants), _values(haves), strict=True)
    )
    return reference.compare(expected, found, samples) if found and is_comparable else None


def fitting_parts(
    gm: fx.GraphModule, examples: tuple[Any, ...], reference: FloatReference, shapes: OpenShapes
) -> Iterator[Part]:
    """Yield what fits a file, a few runs of it."""
    wanted = _leaves(examples)
    runs = 0
    batch = 0 if shapes.is_batch_open(examples) else next((len(leaf) for leaf in wanted if leaf.dim()), 0)
    forms = _forms(wanted, shapes)
    for inputs, outputs in zip(reference.inputs, reference.outputs, strict=True):
        count = inputs.samples or 0
        leaves = _leaves(tuple(inspect.signature(gm.forward).bind(*inputs.args, **inputs.kwargs).arguments.values()))
        is_alike = len(leaves) == len(wanted) and _forms(leaves, shapes) == forms
        if not is_alike or (batch and count != batch and not _is_batched([*leaves, *_values(outputs)], count)):
            continue
        size = batch or count or 1
        for start in range(0, (count or 1) - size + 1, size):
            if runs == _MOST_RUNS:
                return
            whole = size == (count or 1)
            tensors = [leaf if whole else leaf[start : start + size] for leaf in leaves]
            wanted_outputs = [(name, value if whole else value[start : start + size]) for name, value in outputs]
            yield Part(tensors, wanted_outputs, size, inputs if whole else inputs.part(start, start + size))
            runs += 1


def _forms(leaves: list[Tensor], shapes: OpenShapes) -> list[tuple[Any, ...]]:
    """Return the dtype of each tensor, and those of its sizes that a file fixes, the batch apart."""
    return [
        (leaf.dtype, *(None if axis in dims else size for axis, size in enumerate(leaf.shape) if axis))
        for leaf, dims in zip(leaves, shapes.dims, strict=True)
    ]


def _leaves(inputs: Any) -> list[Tensor]:
    return [leaf.cpu() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _values(outputs: Named) -> list[Tensor]:
    return [value for _, value in outputs]


def _is_batched(tensors: list[Tensor], count: int) -> bool:
    return all(tensor.dim() > 0 and len(tensor) == count for tensor in tensors)
