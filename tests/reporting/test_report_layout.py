"""Where nodes of the graph are drawn."""

import itertools
import time

import pytest

from fxq.reporting.content import GraphEdge
from fxq.reporting.layout import Layout, lay_out


def laid_out(count: int, *edges: tuple[int, int]) -> Layout:
    return lay_out(count, [GraphEdge(source, target, None) for source, target in edges])


def test_a_chain_is_a_straight_line() -> None:
    assert laid_out(3, (0, 1), (1, 2)) == Layout((0.0, 0.0, 0.0), (0, 1, 2), (None, None))


def test_branches_stand_side_by_side_and_their_sum_between_them() -> None:
    found = laid_out(5, (0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4))
    assert found.x == (0.0, -1.0, 0.0, 1.0, 0.0)
    assert found.y == (0, 1, 1, 1, 2)
    assert found.lanes == (None,) * 6


def test_what_skips_layers_runs_beside_them() -> None:
    found = laid_out(4, (0, 1), (1, 2), (2, 3), (0, 3))
    assert found.lanes[:3] == (None, None, None)
    assert found.lanes[3] == pytest.approx(0.62)


def test_what_skips_a_wide_layer_runs_beside_all_of_it() -> None:
    branches = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)]
    assert laid_out(5, *branches, (0, 4)).lanes[-1] == pytest.approx(1.62)


def test_overlapping_skips_have_lanes_of_their_own_and_readers_of_one_node_share_one() -> None:
    chain = [(node, node + 1) for node in range(7)]
    found = laid_out(8, *chain, (0, 3), (0, 4), (1, 5), (4, 7))
    first, second, other, later = found.lanes[len(chain) :]
    assert first == second == later  # the last begins where the first two end
    assert other != first


def test_an_input_that_is_read_far_below_stands_there() -> None:
    assert laid_out(5, (0, 1), (1, 2), (3, 4), (2, 4)).y == (0, 1, 2, 2, 3)


def test_no_two_nodes_of_a_layer_overlap() -> None:
    edges = [(0, node) for node in range(1, 6)] + [(node, node + 5) for node in range(1, 6)] + [(1, 10), (5, 6)]
    found = laid_out(11, *edges)
    for layer in set(found.y):
        x = sorted(x for x, y in zip(found.x, found.y, strict=True) if y == layer)
        assert all(right - left > 0.99 for left, right in itertools.pairwise(x))


def test_an_empty_graph_has_a_layout() -> None:
    assert laid_out(0) == Layout((), (), ())
    assert laid_out(1) == Layout((0.0,), (0,), ())


def test_skips_over_the_whole_graph_cost_little() -> None:
    count = 20_000
    edges = [(node, node + 1) for node in range(count - 1)] + [(node, count - 1) for node in range(0, count - 2, 2)]
    start = time.process_time()
    laid_out(count, *edges)
    assert time.process_time() - start < 3  # 0.3 s here; walking each skip would be 10^8 steps
