"""Files of older versions of the format, as today's: one step a version.

Version 0 (of before the first release) stored the switches of a quantizer as a list, without names, and no ``frozen``
parameters. Version 1 had no islands.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fxq.saving.packed import Packed

VERSION = 2
_SWITCHES_OF_0 = ("enabled", "quant", "clip", "calib")


def migrated(packed: Packed) -> Packed:
    """Return a packed model of any version up to today's in today's form."""
    for step in range(packed.header["version"], VERSION):
        packed = _STEPS[step](packed)
    return packed


def _from_0(packed: Packed) -> Packed:
    quantizers = {
        path: {**fields, "switches": dict(zip(_SWITCHES_OF_0, fields["switches"], strict=True))}
        for path, fields in packed.header["quantizers"].items()
    }
    header: dict[str, Any] = {"frozen": [], **packed.header, "quantizers": quantizers, "version": 1}
    return Packed(header, packed.tensors)


def _from_1(packed: Packed) -> Packed:
    return Packed({**packed.header, "islands": {}, "left": {}, "version": 2}, packed.tensors)


_STEPS: Mapping[int, Callable[[Packed], Packed]] = MappingProxyType({0: _from_0, 1: _from_1})
