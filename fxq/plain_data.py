"""Plain data: what JSON can hold."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def plain_data(value: Any) -> Any:
    """Return what JSON can hold: dataclasses as dicts, and infinities and NaN, which it has not, as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain_data(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
