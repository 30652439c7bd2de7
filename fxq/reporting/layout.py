"""Where each node is drawn: in layers from top to bottom, at a cost that is linear in the graph but for sorting.

A node is one layer below the lowest that it reads, and near the middle of those. What skips layers runs beside them in
a lane: one for each node that is read further down, and one on the same side for those whose lanes overlap.
Source: the layers of Sugiyama et al. 1981, doi:10.1109/TSMC.1981.4308636.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxq.reporting.content import GraphEdge

_BESIDE, _BETWEEN = 0.62, 0.08  # of a column: from the middle of a node to the first lane, and between two lanes


@dataclass(frozen=True)
class Layout:
    """Columns and layers of the nodes; for each edge the column of its lane, None where it is a straight line."""

    x: tuple[float, ...]
    y: tuple[int, ...]
    lanes: tuple[float | None, ...]


def lay_out(count: int, edges: Sequence[GraphEdge]) -> Layout:
    """Return where ``count`` nodes in topological order are drawn."""
    read: list[list[int]] = [[] for _ in range(count)]
    readers: list[list[int]] = [[] for _ in range(count)]
    for edge in edges:
        read[edge.target].append(edge.source)
        readers[edge.source].append(edge.target)
    y = [0] * count
    for node in range(count):
        y[node] = max((y[source] + 1 for source in read[node]), default=0)
    for node in range(count):  # an input that is first read far below stands there
        if not read[node] and readers[node]:
            y[node] = min(y[reader] for reader in readers[node]) - 1
    x = _columns(y, read)
    return Layout(tuple(x), tuple(y), _lanes(x, y, edges))


def _columns(y: list[int], read: list[list[int]]) -> list[float]:
    layers: dict[int, list[int]] = {}
    for node, layer in enumerate(y):
        layers.setdefault(layer, []).append(node)
    x = [0.0] * len(y)
    for _, nodes in sorted(layers.items()):
        wanted = {node: sum(x[one] for one in read[node]) / len(read[node]) if read[node] else 0.0 for node in nodes}
        last = -np.inf
        for node in sorted(nodes, key=wanted.__getitem__):
            x[node] = last = max(wanted[node], last + 1)
        shift = sum(wanted[node] - x[node] for node in nodes) / len(nodes)
        for node in nodes:
            x[node] = round(x[node] + shift, 3)
    return x


def _lanes(x: list[float], y: list[int], edges: Sequence[GraphEdge]) -> tuple[float | None, ...]:
    """Return a lane for each edge that skips a layer; what reads one node shares one, others do not touch it."""
    ends: dict[int, int] = {}
    for edge in edges:
        if y[edge.target] - y[edge.source] > 1:
            ends[edge.source] = max(ends.get(edge.source, 0), y[edge.target])
    depth = max(y, default=0) + 1
    left, right = np.zeros(depth), np.zeros(depth)
    np.minimum.at(left, y, x)
    np.maximum.at(right, y, x)
    lowest, highest = _windows(left, np.minimum), _windows(right, np.maximum)
    chosen: dict[int, float] = {}
    for side in (-1, 1):
        busy: list[tuple[int, int]] = []  # where a lane ends, and its number
        free: list[int] = []
        sources = [node for node in ends if (x[node] < 0) == (side < 0)]
        for node in sorted(sources, key=y.__getitem__):
            while busy and busy[0][0] <= y[node]:
                heapq.heappush(free, heapq.heappop(busy)[1])
            lane = heapq.heappop(free) if free else len(busy)
            heapq.heappush(busy, (ends[node], lane))
            windows, best = (lowest, np.minimum) if side < 0 else (highest, np.maximum)
            outermost = _over(windows, y[node] + 1, ends[node] - 1, best)
            chosen[node] = round(outermost + side * (_BESIDE + _BETWEEN * lane), 3)
    return tuple(chosen[edge.source] if y[edge.target] - y[edge.source] > 1 else None for edge in edges)


def _windows(values: np.ndarray, best: np.ufunc) -> list[np.ndarray]:
    """Return, for each power of two, the best of every window of that many values."""
    found = [values]
    while 2 ** len(found) <= len(values):
        half = 2 ** (len(found) - 1)
        found.append(best(found[-1][:-half], found[-1][half:]))
    return found


def _over(windows: list[np.ndarray], first: int, last: int, best: np.ufunc) -> float:
    """Return the best of the values from ``first`` to ``last``: two windows cover them."""
    level = (last - first + 1).bit_length() - 1
    return float(best(windows[level][first], windows[level][last + 1 - 2**level]))
