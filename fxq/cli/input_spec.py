"""``--input-shape``: what one input of the model looks like, as text. Needs no torch, as all that help shows."""

from dataclasses import dataclass

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """One input.

    Args:
        shape: with the batch as dimension 0.
        name: of the parameter of the model's forward; "" for the next one without a name.
        dtype: torch's name for it; "" for the dtype of the model's weights.
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""

    def __str__(self) -> str:
        parts = (self.name, ",".join(map(str, self.shape)), self.dtype)
        return ":".join(part for part in parts if part)


def parse_input_spec(text: str) -> InputSpec:
    """Return what ``[NAME:]SHAPE[:DTYPE]`` says, such as ``1,3,224,224`` or ``ids:1x128:int64``.

    Raises:
        ValueError: it says nothing of that kind.
    """
    parts = text.strip().split(":")
    name = parts.pop(0) if _shape(parts[0]) is None else ""
    shape = _shape(parts.pop(0)) if parts else None
    dtype = parts.pop(0) if parts else ""
    if shape is None or parts or (name and not name.isidentifier()):
        raise ValueError(f"{text!r} is no input such as 1,3,224,224 or ids:1,128:int64 (NAME:SHAPE:DTYPE)")
    if dtype and dtype not in DTYPES:
        raise ValueError(f"{text!r}: there is no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    return InputSpec(shape, name, dtype)


def _shape(text: str) -> tuple[int, ...] | None:
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        return None
    return tuple(int(part) for part in parts)
