"""What callers write for ``dynamic_shapes``, as open dimensions: the forms that torch.export takes, and names.

By the names of forward's parameters, or in their order; for a tensor ``{dim: what}`` or one entry for each dimension;
for lists, tuples and dicts of tensors the same nested. What a dimension is: a name, ``Dim("h", min=, max=)``,
``8 * Dim("h")``, ``Dim.DYNAMIC``, ``Dim.AUTO`` (open if the model allows it), or None for the size of the example.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.export import Dim

from fxq.batches import describe
from fxq.errors import InputError
from fxq.export.open_shapes import BATCH, OpenShapes, OpenSize

Shapes = Mapping[str, Any] | Sequence[Any]


def open_shapes(
    dynamic_shapes: Shapes | None,
    dynamic_batch: bool | None,
    parameters: Sequence[str],
    inputs: tuple[Any, ...],
) -> OpenShapes:
    """Return the dimensions that stay open.

    Args:
        dynamic_shapes: what to leave open; then nothing else is, and ``dynamic_batch`` may add the batch. None for the
            batch alone.
        dynamic_batch: whether dimension 0 of all tensors with as many samples as the first is open.
        parameters: of forward; the last may be ``*inputs``.
        inputs: positional inputs.

    Raises:
        InputError: ``dynamic_shapes`` does not fit the inputs, or contradicts itself or ``dynamic_batch``.
    """
    names = _names(parameters, len(inputs))
    found = _Reader()
    specs = _by_position(dynamic_shapes, parameters, names)
    for name, value, spec in zip(names, inputs, specs, strict=True):
        found.read(name, value, spec)
    if dynamic_shapes is None or dynamic_batch is not None:
        found.set_batch(bool(dynamic_batch))
    shapes = OpenShapes(tuple(found.names), tuple(found.dims), dynamic_shapes is None)
    _check_sizes(shapes, found.tensors)
    return shapes


def _names(parameters: Sequence[str], count: int) -> list[str]:
    plain = [name.lstrip("*") for name in parameters]
    return [plain[index] if index < len(plain) else f"{plain[-1]}_{index}" for index in range(count)]


def _by_position(shapes: Shapes | None, parameters: Sequence[str], names: list[str]) -> list[Any]:
    """Return what is written for each input."""
    if shapes is None:
        return [None] * len(names)
    if isinstance(shapes, Mapping):
        starred = next((name.lstrip("*") for name in parameters if name.startswith("*")), None)
        given = dict(shapes)
        if starred in given:
            first = names.index(starred) if starred in names else len(names)
            many = given.pop(starred) or [None] * (len(names) - first)
            if not isinstance(many, tuple | list) or len(many) != len(names) - first:
                raise InputError(f"dynamic_shapes has another number of entries for *{starred} than example inputs")
            given |= zip(names[first:], many, strict=True)
        for name in given:
            if name not in names:
                raise InputError(f"dynamic_shapes names {name!r}, {_no_input(name, names)}")
        return [given.get(name) for name in names]
    if not isinstance(shapes, tuple | list):
        raise InputError(f"dynamic_shapes must be a dict by input name, or a tuple, got {type(shapes).__name__}")
    if len(shapes) != len(names):
        raise InputError(f"dynamic_shapes has {len(shapes)} entries for {len(names)} inputs ({', '.join(names)})")
    return list(shapes)


def _no_input(name: Any, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
    return f"which is no input of the example inputs; {hint}there are {', '.join(names) or 'none'}"


class _Reader:
    """Reads what is written for each input, tensor by tensor."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        self.dims: list[dict[int, OpenSize]] = []
        self._fixed: set[tuple[int, int]] = set()  # what is said to be static

    def read(self, name: str, value: Any, spec: Any) -> None:
        """Take over what ``spec`` says of ``value``, the input ``name`` or a part of it."""
        if isinstance(value, Tensor):
            self.names.append(name)
            self.tensors.append(value)
            self.dims.append({})
            for axis, one in _axes(name, value, spec).items():
                self._open(axis, one)
        elif isinstance(value, Mapping):
            if spec is not None and not isinstance(spec, Mapping):
                raise InputError(f"dynamic_shapes has {spec!r} for {name!r}, a dict: write a dict with its keys")
            for key in spec or ():
                if key not in value:
                    raise InputError(f"dynamic_shapes has a key {key!r} for {name!r}, {_no_input(key, list(value))}")
            for key, item in value.items():
                self.read(f"{name}_{key}", item, (spec or {}).get(key))
        elif isinstance(value, tuple | list):
            items = [None] * len(value) if spec is None else spec
            if not isinstance(items, tuple | list) or len(items) != len(value):
                raise InputError(f"dynamic_shapes has {spec!r} for {name!r}, which holds {len(value)}: write as many")
            for index, (item, one) in enumerate(zip(value, items, strict=True)):
                self.read(name if index == 0 else f"{name}_{index}", item, one)
        elif spec:
            raise InputError(
                f"dynamic_shapes has {spec!r} for {name!r}, which is {describe(value)}: only tensors have sizes, and a "
                "file holds anything else as a constant"
            )

    def set_batch(self, is_open: bool) -> None:
        """Open dimension 0 of what has as many samples as the first tensor, or check that it is not open."""
        count = next((len(tensor) for tensor in self.tensors if tensor.dim()), 0)
        for leaf, tensor in enumerate(self.tensors):
            if not tensor.dim() or len(tensor) != count:
                continue
            if is_open and (leaf, 0) in self._fixed:
                raise InputError(
                    f"dynamic_batch=True and dynamic_shapes contradict each other: this fixes dimension 0 of "
                    f"{self.names[leaf]!r}. Leave one of them out"
                )
            if not is_open and 0 in self.dims[leaf]:
                raise InputError(
                    f"dynamic_batch=False and dynamic_shapes contradict each other: this opens dimension 0 of "
                    f"{self.names[leaf]!r}. Leave one of them out"
                )
            if is_open:
                self.dims[leaf].setdefault(0, OpenSize(BATCH))

    def _open(self, axis: int, given: Any) -> None:
        name, tensor, where = self.names[-1], self.tensors[-1], f"dimension {axis} of {self.names[-1]!r}"
        kind = getattr(getattr(given, "type", None), "name", "")
        if given is None or kind == "STATIC" or (isinstance(given, int) and not isinstance(given, bool)):
            if isinstance(given, int) and given != tensor.shape[axis]:
                raise InputError(f"dynamic_shapes fixes {where} at {given}, and the example has {tensor.shape[axis]}")
            self._fixed.add((len(self.dims) - 1, axis))
            return
        self.dims[-1][axis] = _open_size(given, kind, f"{name}_dim_{axis}", where)


def _axes(name: str, tensor: Tensor, spec: Any) -> dict[int, Any]:
    """Return what is written for each dimension of a tensor."""
    count = tensor.dim()
    if spec is None:
        return {}
    if isinstance(spec, tuple | list):
        if len(spec) != count:
            raise InputError(f"dynamic_shapes has {len(spec)} dimensions for {name!r}, which has {count}")
        return dict(enumerate(spec))
    if not isinstance(spec, Mapping):
        raise InputError(
            f"dynamic_shapes has {spec!r} for {name!r}, a tensor: write {{dimension: name}}, such as {{0: 'batch'}}"
        )
    found: dict[int, Any] = {}
    for axis, one in spec.items():
        if not isinstance(axis, int) or isinstance(axis, bool) or not -count <= axis < count:
            raise InputError(f"dynamic_shapes has a dimension {axis!r} for {name!r}, whose are 0 to {count - 1}")
        if axis % count in found:
            raise InputError(f"dynamic_shapes has dimension {axis % count} of {name!r} twice")
        found[axis % count] = one
    return found


def _open_size(given: Any, kind: str, default: str, where: str) -> OpenSize:
    if isinstance(given, str):
        if not given.isidentifier():
            raise InputError(f"dynamic_shapes calls {where} {given!r}: a name is letters, digits and underscores")
        return OpenSize(given)
    if kind in ("AUTO", "DYNAMIC"):
        return OpenSize(default, given.min or 1, given.max, is_named=False, is_optional=kind == "AUTO")
    if isinstance(given, Dim):
        root = getattr(given, "root", given)
        plus = int(given.fn(0)) if root is not given else 0  # type: ignore[attr-defined]
        times = int(given.fn(1)) - plus if root is not given else 1  # type: ignore[attr-defined]
        most = root.max if isinstance(root.max, int) else None
        return OpenSize(root.__name__, max(root.min, 1), most, times, plus)
    raise InputError(
        f"dynamic_shapes has {given!r} for {where}: write a name, torch.export.Dim(...), Dim.DYNAMIC, Dim.AUTO, or "
        "None for the size of the example"
    )


def _check_sizes(shapes: OpenShapes, tensors: list[Tensor]) -> None:
    """Refuse what the examples contradict: their sizes within bounds, and equal where the name is."""
    seen: dict[str, tuple[int, str, OpenSize]] = {}
    for leaf, axis, one in shapes.places():
        size, where = tensors[leaf].shape[axis], f"dimension {axis} of {shapes.inputs[leaf]!r}"
        value = one.root(size)
        if value is None:
            most = "more" if one.most is None else one.most
            raise InputError(
                f"{where} is {size} in the example inputs, which is not {one} with {one.name} from {one.least} to "
                f"{most}: pass example_inputs of a size that dynamic_shapes allows"
            )
        other, place, like = seen.setdefault(one.name, (value, where, one))
        if other != value:
            raise InputError(
                f"dynamic_shapes calls {place} and {where} both {one.name!r}, and they are {other} and {value} in the "
                "example inputs: sizes of one name are equal"
            )
        if (like.least, like.most) != (one.least, one.most):
            raise InputError(f"dynamic_shapes gives {one.name!r} other bounds at {where} than at {place}")
