"""Formats: which numbers a runtime computes with. The dtypes of its files are in FileRules."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Formats:
    """Number formats of one runtime.

    Args:
        activation_bits, weight_bits: widths that the runtime can express.
        float8: float8 e4m3 is a format like any integer one.
        packed_bits: widths of weights that are written without padding to 8 bits.
        block_sizes: how many inputs of a weight may share a range, for weights of ``packed_bits``.
        block_kinds: kinds whose weights may have blocks.
    """

    activation_bits: frozenset[int] = frozenset({8})
    weight_bits: frozenset[int] = frozenset({8})
    float8: bool = False
    packed_bits: frozenset[int] = frozenset()
    block_sizes: frozenset[int] = frozenset()
    block_kinds: frozenset[str] = frozenset({"linear"})

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits", "packed_bits", "block_sizes", "block_kinds"):
            given = getattr(self, name)
            if isinstance(given, Iterable) and not isinstance(given, str):
                object.__setattr__(self, name, frozenset(given))
