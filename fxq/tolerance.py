"""Tolerance: what a pass promises about the numbers of the graph that it edits."""

from dataclasses import dataclass

from fxq.errors import PluginError

_ORDER = ("EXACT", "ROUNDING", "LSB", "ANY")


@dataclass(frozen=True)
class Tolerance:
    """How far the outputs of a graph may move while a pass edits it. Use EXACT, ROUNDING, LSB(n) or ANY.

    Args:
        name: which of the four.
        lsb: for LSB, how many steps of an output: the mean error may be that many, a single one 16 times as many.
    """

    name: str
    lsb: float = 0.0

    def then(self, other: "Tolerance") -> "Tolerance":
        """Return the looser of two: what passes promise together, where errors that are chance do not add up."""
        return max(self, other, key=lambda one: (_ORDER.index(one.name), one.lsb))

    def __str__(self) -> str:
        return f"LSB({self.lsb:g})" if self.name == "LSB" else self.name


# Bit for bit the same (0.0 and -0.0 count as equal).
EXACT = Tolerance("EXACT")
# The same sums in another order: 1e-4 of the largest output; in a graph that quantizes, what rounding alone does to it.
ROUNDING = Tolerance("ROUNDING")
# Something else: nothing is compared across the pass.
ANY = Tolerance("ANY")


def LSB(count: float) -> Tolerance:
    """Return the tolerance of ``count`` steps of each output on average, as :mod:`fxq.compare.parity` counts them.

    Raises:
        PluginError: ``count`` is no positive number.
    """
    if isinstance(count, bool) or not isinstance(count, int | float) or not count > 0:
        raise PluginError(f"fxq.LSB takes a positive number of steps, such as fxq.LSB(1), got {count!r}")
    return Tolerance("LSB", float(count))


def is_tolerance(value: object) -> bool:
    """Return whether ``value`` is one of EXACT, ROUNDING, ANY, or made by LSB."""
    return isinstance(value, Tolerance) and (value in (EXACT, ROUNDING, ANY) or (value.name == "LSB" and value.lsb > 0))
