"""TOML as people send it: any bytes, of any size. What is no TOML is an error of the caller's type, never another."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxq.errors import FxqError

# The largest recipe that anyone has written by hand has a few hundred lines.
MOST_BYTES, DEEPEST = 1_000_000, 20


def read_text(path: str | Path, what: str, error_type: type[FxqError]) -> str:
    """Return the text of a file; ``what`` it is for, such as "the recipe", begins the message of the error."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a device has no size, and no end
    except (OSError, ValueError) as error:  # a name with NUL in it is a ValueError
        raise error_type(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    _check_size(len(content), f"{what} {path}", error_type)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise error_type(f"cannot read {what} {path}: it is no text in UTF-8 ({error}); save it as UTF-8") from error


def parse_toml(text: str, what: str, error_type: type[FxqError]) -> dict[str, Any]:
    """Return what TOML text says, nested no deeper than a recipe has reason to."""
    if not isinstance(text, str):
        raise error_type(f"{what} must be text, got {type(text).__name__}")
    _check_size(len(text), what, error_type)
    try:
        fields = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one, and so is an integer of thousands of digits
        raise error_type(f"{what} is not valid TOML: {error}") from error
    except RecursionError:
        raise _too_deep(what, error_type) from None  # a traceback of a thousand frames
    level: list[Any] = [fields]
    for _ in range(DEEPEST):
        level = [item for value in level for item in _items(value)]
    if level:
        raise _too_deep(what, error_type)
    return fields


def _check_size(size: int, what: str, error_type: type[FxqError]) -> None:
    if size > MOST_BYTES:
        raise error_type(f"{what} has more than {MOST_BYTES} bytes: it is something else, or was written by mistake")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _too_deep(what: str, error_type: type[FxqError]) -> FxqError:
    return error_type(f"{what} nests values deeper than {DEEPEST} levels, and nothing in it may")
