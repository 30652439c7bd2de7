"""Shapes of inputs, for runtimes that want to know open sizes: one, or a smallest, a usual and a largest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from fxq.errors import InputError, OnnxFileError
from fxq.export.size_bounds import stored_sizes

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
# As a caller gives them: "1x3x224x224", "1x3x224x224/8x3x224x224/32x3x224x224", or tuples of sizes.
Shapes = Mapping[str, str | Sequence[int] | Sequence[Sequence[int]]]


def read_profile(path: Path, model: ir.Model, shapes: Shapes | None) -> Profile:
    """Return the shapes given for a file's inputs, as smallest, usual and largest.

    Raises:
        InputError: one is of no input, or does not fit what the file declares.
    """
    declared = {str(value.name): value for value in model.graph.inputs if not value.is_initializer()}
    profile: Profile = {}
    if not isinstance(shapes, Mapping | None):
        raise InputError(f"shapes is a dict of names of inputs to shapes, {{'x': '1x3x224x224'}}, got {shapes!r}")
    for name, given in (shapes or {}).items():
        if name not in declared:
            raise InputError(f"shapes: {path.name} has no input {name!r}; its inputs: {', '.join(declared)}")
        profile[name] = parse_shapes(given, name)
        sizes = declared[name].shape
        if sizes is not None and not _fits(sizes, profile[name]):
            raise InputError(
                f"shapes: {given!r} does not fit input {name!r}, whose shape in {path.name} is {_shown(sizes)}: fixed "
                "sizes stay, and sizes do not fall from the smallest to the largest"
            )
    return profile


def with_stored_sizes(model: ir.Model, profile: Profile) -> Profile:
    """Return ``profile`` with the inputs that it says nothing of and whose open sizes are known all the same.

    Sizes of one name are equal: a name is known where a shape was given for an input that has it, or where the file
    itself stores its bounds.
    """
    inputs = [value for value in model.graph.inputs if value.shape is not None and not value.is_initializer()]
    known: dict[str, Shape] = {**stored_sizes(model)}
    for value in inputs:
        for size, *told in zip(value.shape or (), *profile.get(str(value.name), ()), strict=False):
            if told and isinstance(size, ir.SymbolicDim) and size.value:
                known[size.value] = tuple(told)
    found: Profile = {}
    for value in inputs:
        ranges = [(size,) * 3 if isinstance(size, int) else known.get(size.value or "") for size in value.shape or ()]
        if is_open(value) and None not in ranges:
            smallest, usual, largest = zip(*ranges, strict=True)
            found[str(value.name)] = smallest, usual, largest
    return found | profile


def check_all_known(path: Path, model: ir.Model, profile: Profile, who: str) -> None:
    """Refuse a file with open sizes that nobody told.

    Raises:
        OnnxFileError: names the inputs, and the option that tells them.
    """
    for value in model.graph.inputs:
        name = str(value.name)
        if value.is_initializer() or name in profile or not is_open(value):
            continue
        if value.shape is None:
            raise OnnxFileError(
                f"{path.name} does not tell the shape of input {name!r}, nor how many sizes it has, and {who} needs to "
                f"know it: give all its sizes, as --shape {name}:1x3x224x224 does for one image; in Python "
                f"shapes={{{name!r}: '1x3x224x224'}}"
            )
        one, more = (
            "x".join(str(size) if isinstance(size, int) else str(usual) for size in value.shape) for usual in (1, 8)
        )
        raise OnnxFileError(
            f"input {name!r} of {path.name} has open sizes, {_shown(value.shape)}, and {who} needs to know them: "
            f"--shape {name}:{one}, or smallest, usual and largest, --shape {name}:{one}/{more}/{more}; "
            f"in Python shapes={{{name!r}: {one!r}}}"
        )


def parse_shapes(given: str | Sequence[int] | Sequence[Sequence[int]], name: str) -> tuple[Shape, Shape, Shape]:
    """Return a smallest, a usual and a largest shape; one stands for all three.

    Raises:
        InputError: it says nothing of that kind.
    """
    found: list[Shape] = []
    try:
        if isinstance(given, str):
            found = [tuple(int(size) for size in part.replace(",", "x").split("x")) for part in given.split("/")]
        elif all(isinstance(size, int) for size in given):
            found = [tuple(int(size) for size in given)]  # type: ignore[arg-type]  # a shape, as was asked
        else:
            found = [tuple(int(size) for size in shape) for shape in given]  # type: ignore[union-attr]  # shapes
    except (TypeError, ValueError):
        found = []
    if len(found) not in (1, 3) or any(size < 1 for shape in found for size in shape):
        raise InputError(
            f"shapes: {given!r} of input {name!r} is no shape such as 1x3x224x224, nor a smallest, usual and largest "
            "one, 1x3x224x224/8x3x224x224/32x3x224x224"
        )
    smallest, usual, largest = found if len(found) == 3 else found * 3
    return smallest, usual, largest


def is_open(value: ir.Value) -> bool:
    """Return whether an input has a size that the file does not fix."""
    return value.shape is None or any(not isinstance(size, int) for size in value.shape)


def _fits(declared: ir.Shape, shapes: tuple[Shape, Shape, Shape]) -> bool:
    if any(len(shape) != len(declared) for shape in shapes):
        return False
    sizes = zip(declared, *shapes, strict=True)
    return all(
        low <= middle <= high and (not isinstance(size, int) or low == high == size)
        for size, low, middle, high in sizes
    )


def _shown(shape: ir.Shape | None) -> str:
    if shape is None:
        return "unknown"
    return f"({', '.join(str(size) if isinstance(size, int) else str(size.value or '?') for size in shape)})"
