"""What is drawn: boxes, lines, dots and labels, as figures."""

import math

import pytest
from bokeh.models import MultiLine, Rect

from fxq.comparison_report import Comparison, LayerComparison
from fxq.explanation import QuantizedTensor
from fxq.reporting.content import GraphEdge, GraphNode
from fxq.reporting.figures import group_dots, layer_dots
from fxq.reporting.graph_figure import graph_figure, states_of
from fxq.reporting.layout import lay_out
from fxq.sensitivity_report import GroupSensitivity, Sensitivity

READ = QuantizedTensor("input", 0, "conv_input_quantizer", "int8 per tensor", "[-1, 1]", "plan_ops", "it is one")
NODES = (
    GraphNode("x", "x", "input", (1, 3, 8, 8), (), ""),
    GraphNode("conv", "blocks.0.attention.projection.conv", "conv", (1, 4, 8, 8), (READ,), ""),
    GraphNode("head", "head", "linear", None, (), "a rule says so"),
    GraphNode("add", "層層層層層層層層層層層層", "add", None, (), "fused"),
)
EDGES = (GraphEdge(0, 1, READ.quantizer), GraphEdge(1, 2, None), GraphEdge(2, 3, None), GraphEdge(0, 3, None))


def drawn_graph():
    return graph_figure(NODES, EDGES, lay_out(len(NODES), EDGES), states_of(NODES, ["head"]))


def test_tensors_in_integers_and_in_float_differ_by_more_than_color() -> None:
    lines = [one for one in drawn_graph().renderers if isinstance(one.glyph, MultiLine)]
    found = {one.glyph.tags[0]["line_color"]: (one.glyph.line_dash, len(one.data_source.data["xs"])) for one in lines}
    assert found == {"dim": ([5, 4], 3), "quantized": ([], 1)}


def test_a_line_joins_two_boxes_and_one_that_skips_layers_runs_along_its_lane() -> None:
    in_float, in_integers = (one for one in drawn_graph().renderers if isinstance(one.glyph, MultiLine))
    assert in_integers.data_source.data == {"xs": [[0.0, 0.0]], "ys": [[-19.0, -43.0]]}
    x, y = (in_float.data_source.data[axis][-1] for axis in ("xs", "ys"))
    assert (x[0], y[0], x[-1], y[-1]) == (0, -19, 0, -167)
    assert max(x) == pytest.approx(0.62 * 190, abs=0.1)
    assert y == sorted(y, reverse=True)


def test_layers_in_float_are_told_from_what_has_no_quantizer() -> None:
    drawn = drawn_graph()
    nodes = drawn.select_one({"name": "nodes"})
    assert list(nodes.data["state"]) == ["other", "quantized", "float", "other"]
    boxes = [one for one in drawn.renderers if isinstance(one.glyph, Rect)]
    shown = [getattr(one.view.filter, "group", None) for one in boxes]
    assert shown == ["quantized", "float", "other", None]


def test_labels_fit_into_their_boxes_and_keep_the_end_of_a_path() -> None:
    nodes = drawn_graph().select_one({"name": "nodes"})
    assert nodes.data["name label"] == ["x", "…tion.projection.conv", "head", "…層層層層層層層層層層"]
    assert nodes.data["words label"] == ["input 1×3×8×8", "conv 1×4×8×8", "linear", "add"]


def test_an_empty_graph_is_drawn() -> None:
    drawn = graph_figure((), (), lay_out(0, ()), [])
    assert (drawn.x_range.start, drawn.x_range.end) == (-102, 102)


def sensitivity(*values: float) -> Sensitivity:
    groups = tuple(GroupSensitivity((f"layer{index}",), "conv", value, 0.5) for index, value in enumerate(values))
    return Sensitivity(groups, "one_quantized", False, math.inf, 20.0, 16)


def test_what_is_not_finite_has_no_dot_and_a_plot_without_dots_is_none() -> None:
    source = group_dots(sensitivity(20.0, math.inf)).renderers[0].data_source
    assert source.data["quantized alone"] == [20.0, pytest.approx(math.nan, nan_ok=True)]
    assert source.data["quantized alone in words"] == ["20.0 dB", "exact"]
    assert group_dots(sensitivity(math.inf)) is None
    assert layer_dots(Comparison((LayerComparison("conv", "conv", None, None, None),))) is None
    assert group_dots(sensitivity(20.0)) is not None
