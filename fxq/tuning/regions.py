"""What may be faster in float: kinds of operations that integer kernels are bad at, and regions, by a profile.

A group (``fxq.graph.groups``) is known by its number, in graph order. Of each the runtime's profile tells the time in
integers, conversions and float islands around it included, and in float. The regions are the choice of types along the
graph that minimizes

    sum over groups of time(group, type) + share * total time * number of changes of type

for some shares: what a change costs depends on kernels and layouts, and a measurement of the whole decides. Without
changes it would be the better of all in integers and all in float. The minimum is found by dynamic programming
(Viterbi).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch.fx import GraphModule

from fxq.graph.groups import Group
from fxq.graph.kinds import module_of
from fxq.graph.match import is_quantizer, is_weighted, owner_path
from fxq.runtimes import OpTime

# Of the total time: from "next to nothing" to "only large regions are worth it".
_SHARES = (0.0, 0.002, 0.01, 0.05)
_NARROW = 64  # channels
_LAYERS = ("conv", "conv_transpose", "linear", "multihead_attention")
_PRODUCTS = ("matmul", "softmax")


@dataclass(frozen=True)
class Candidate:
    """Groups to leave in float, by number, and what they are, in words."""

    in_float: frozenset[int]
    why: str


@dataclass(frozen=True)
class GroupTimes:
    """What each group takes in a runtime, in milliseconds, by number: in integers, and in float."""

    integer_ms: tuple[float, ...]
    float_ms: tuple[float, ...]

    def total_ms(self, in_float: frozenset[int]) -> float:
        """Return what all groups take with these in float, boundaries apart."""
        pairs = enumerate(zip(self.integer_ms, self.float_ms, strict=True))
        return sum(pair[index in in_float] for index, pair in pairs)


def kinds_in_float(groups: Sequence[Group]) -> Iterator[Candidate]:
    """Yield what runtimes are known to compute no faster, or slower, in integers."""
    depthwise = _where(groups, _is_depthwise)
    yield Candidate(depthwise, "depthwise convolutions")
    yield Candidate(
        depthwise | _where(groups, _is_narrow), f"depthwise convolutions, and those under {_NARROW} channels"
    )
    yield Candidate(_where(groups, lambda group: group.kind not in _LAYERS), "all but the layers with weights")
    yield Candidate(_where(groups, lambda group: group.kind in _PRODUCTS), "products of activations, and softmax")


def regions_in_float(times: GroupTimes) -> Iterator[Candidate]:
    """Yield the best choices of types along the graph, each for a cost of a change of type."""
    total = min(sum(times.integer_ms), sum(times.float_ms))
    for share in _SHARES:
        yield Candidate(
            _cheapest(times, share * total), f"regions by profile, a change of type counted {100 * share:g} %"
        )


def runs_of(in_float: frozenset[int], count: int) -> list[range]:
    """Return the regions of equal type among ``count`` groups, in graph order."""
    found = [list(run) for _, run in groupby(range(count), key=in_float.__contains__)]
    return [range(run[0], run[-1] + 1) for run in found]


def halves(run: range, groups: Sequence[Group]) -> tuple[range, range]:
    """Return a region cut near its middle, where the outermost module ends.

    Args:
        run: of at least two groups.
        groups: all of them.
    """
    quarter = len(run) // 4
    places = range(run.start + max(1, quarter), run.stop - quarter)
    middle = run.start + len(run) // 2
    cut = min(
        places or [middle],
        key=lambda place: (_common_depth(groups[place - 1].path, groups[place].path), abs(place - middle)),
    )
    return range(run.start, cut), range(cut, run.stop)


def times_of_groups(gm: GraphModule, groups: Sequence[Group], ops: Iterable[OpTime]) -> tuple[float, ...]:
    """Return how long each group takes, of a profile of its file: with what runs around it and is no group.

    Args:
        gm: the prepared graph, with the groups.
        ops: of the file, in the order in which they run. They are named ``module path/operator``; one that the runtime
            added belongs to the operation before it.
    """
    places = _places(gm)
    owners = _owners(gm, groups)
    found, last = [0.0] * len(groups), 0
    for op in ops:
        here = _known(places, op.name.split("/", 1)[0] if "/" in op.name else "")
        if here:  # a function's module may have several of them: the next one
            last = next((place for place in here if place >= last), here[-1])
        found[owners[last]] += op.ms
    return tuple(found)


def _where(groups: Sequence[Group], ask: Callable[[Group], bool]) -> frozenset[int]:
    return frozenset(index for index, group in enumerate(groups) if ask(group))


def _is_depthwise(group: Group) -> bool:
    channels, convolutions = _channels(group)
    return 1 < channels == convolutions


def _is_narrow(group: Group) -> bool:
    return 0 < _channels(group)[0] < _NARROW


def _channels(group: Group) -> tuple[int, int]:
    """Return the input channels of a convolution, and in how many groups it computes them; (0, 0) for all else."""
    layer = next(filter(is_weighted, group.nodes), None)
    module = None if layer is None or "conv" not in group.kind else module_of(layer)
    return getattr(module, "in_channels", 0), getattr(module, "groups", 0)


def _cheapest(times: GroupTimes, change_ms: float) -> frozenset[int]:
    """Return the groups in float of the cheapest choice, where each change of type costs ``change_ms``."""
    costs = list(zip(times.integer_ms, times.float_ms, strict=True))
    best, came_from = list(costs[0]), []
    for own in costs[1:]:
        came_from.append([kind if best[kind] <= best[1 - kind] + change_ms else 1 - kind for kind in (0, 1)])
        best = [own[kind] + min(best[kind], best[1 - kind] + change_ms) for kind in (0, 1)]
    kind = 0 if best[0] <= best[1] else 1
    kinds = [kind]
    for sources in reversed(came_from):
        kind = sources[kind]
        kinds.append(kind)
    return frozenset(index for index, kind in enumerate(reversed(kinds)) if kind)


def _places(gm: GraphModule) -> dict[str, list[int]]:
    """Return where in the graph the operations of each path are."""
    found: dict[str, list[int]] = {}
    for place, node in enumerate(gm.graph.nodes):
        names = {str(node.target)} if node.op == "call_module" else {owner_path(node), node.name}
        for name in names - {""}:
            found.setdefault(name, []).append(place)
    return found


def _owners(gm: GraphModule, groups: Sequence[Group]) -> list[int]:
    """Return the group that each place in the graph belongs to: its own, or the last one that started before it."""
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    of_node = {node: index for index, group in enumerate(groups) for node in group.nodes}
    for index, group in enumerate(groups):
        for edge in group.readings:
            of_node.setdefault(edge.producer, index)
    starts = sorted((order[node], index) for node, index in of_node.items() if not is_quantizer(node))
    places = [place for place, _ in starts]
    return [
        of_node[node] if node in of_node else starts[max(0, bisect_right(places, place) - 1)][1]
        for node, place in order.items()
    ]


def _known(places: dict[str, list[int]], path: str) -> list[int]:
    """Return the places of a path, or of the module around it: stored tensors have paths of their own."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path, [])


def _common_depth(first: str, second: str) -> int:
    pairs = zip(first.split("."), second.split("."), strict=False)
    return next((depth for depth, (one, other) in enumerate(pairs) if one != other), 99)
