"""What has no SQNR, or no figures at all, and why, in words."""

from collections.abc import Iterable, Iterator, Sequence

from fxq.compare.figures import Sums

_MOST_SHOWN = 5


def without_figures(sums: Iterable[tuple[str, Sums]]) -> Iterator[str]:
    """Say where the float model gives nothing to measure errors by; where that is NaN others say it."""
    # An output may have the name of the layer that it is.
    found = [(path, one, one.figures) for path, one in dict(sums).items()]
    if zero := [path for path, _, figures in found if figures is not None and figures.sqnr_db is None]:
        yield f"no SQNR, but an MSE, where the float model is zero throughout: {listed(zero)}"
    if none := [path for path, one, figures in found if figures is None and not one.nan]:
        yield f"no figures where the float model holds no finite floating-point number: {listed(none)}"


def listed(paths: Sequence[str]) -> str:
    """Return the first paths, and how many more there are."""
    more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
    return ", ".join(map(repr, paths[:_MOST_SHOWN])) + more
