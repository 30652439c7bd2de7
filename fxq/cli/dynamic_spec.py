"""``--dynamic``: which sizes of one input stay open, as text. Needs no torch, as all that help shows."""

from dataclasses import dataclass

_EXAMPLE = "x:0,2=height,3=width or ids:1=words:1-512 (NAME:DIM[=SIZE[:LEAST-MOST]],...)"


@dataclass(frozen=True)
class DynamicDim:
    """One dimension: what its size is called in the file, "" for a name made of the input's, and its bounds."""

    dim: int
    size: str = ""
    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class DynamicSpec:
    """The open dimensions of the input ``name``."""

    name: str
    dims: tuple[DynamicDim, ...]


def parse_dynamic_spec(text: str) -> DynamicSpec:
    """Return what ``NAME:DIM,...`` says, each dimension with a name and bounds for its size or not.

    Raises:
        ValueError: it says nothing of that kind.
    """
    name, _, rest = text.strip().partition(":")
    dims = tuple(_dim(part.strip(), text) for part in rest.split(","))
    if not name.isidentifier():
        raise ValueError(f"{text!r} names no input: write {_EXAMPLE}")
    twice = next((one.dim for one in dims if sum(one.dim == other.dim for other in dims) > 1), None)
    if twice is not None:
        raise ValueError(f"{text!r} has dimension {twice} twice")
    return DynamicSpec(name, dims)


def _dim(text: str, whole: str) -> DynamicDim:
    dim, has_name, rest = text.partition("=")
    size, has_bounds, bounds = rest.partition(":")
    least, _, most = bounds.partition("-")
    is_good = dim.isdecimal() and (not has_name or size.isidentifier())
    is_bounded = least.isdecimal() and most.isdecimal() and 0 < int(least) < int(most)
    if not is_good or (has_bounds and not is_bounded):
        raise ValueError(f"{whole!r}: {text!r} is no open dimension: write {_EXAMPLE}")
    return DynamicDim(int(dim), size, int(least), int(most)) if has_bounds else DynamicDim(int(dim), size)
