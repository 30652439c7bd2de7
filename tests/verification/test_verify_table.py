"""The table of a report: what is where, and what to do there."""

import pytest

from fxq.verification import Finding, VerifyReport


def finding(node: str, path: str = "", fix: str = "leave it", rule: str = "a-rule") -> Finding:
    return Finding(rule, node, path or node, "warning", fix, f"Conv {node!r} is float", "time")


def table(*findings: Finding) -> str:
    return VerifyReport("model.onnx", "tensorrt", findings).table()


def test_module_and_node_are_told_where_they_differ() -> None:
    shown = table(finding("/layer1/layer1.0/Add", "layer1.0"), finding("conv"), Finding("all", "", "", "note", "do it"))
    assert "layer1.0 (/layer1/layer1.0/Add)" in shown
    assert "(conv)" not in shown
    assert "the file" in shown


def test_findings_with_one_fix_tell_it_once() -> None:
    shown = table(*(finding(f"conv{index}") for index in range(3)))
    assert shown.count("leave it") == 1
    assert "Conv 'conv0' is float (and 2 more)" in shown


def test_fixes_that_differ_are_told_place_by_place() -> None:
    lines = table(*(finding(f"add{index}", f"block{index}", f"quantize 'skip{index}'") for index in range(8)))
    assert [f"add{index}: quantize 'skip{index}'" in lines for index in range(8)] == [True] * 6 + [False] * 2
    assert lines.count("... 2 more, all in --json") == 2  # of the places, and of their fixes


def test_places_with_one_of_several_fixes_are_told_together() -> None:
    lines = table(finding("add", fix="fold it"), *(finding(f"conv{index}", fix="quantize it") for index in range(5)))
    assert "add: fold it" in lines
    assert "conv0, conv1, conv2 and 2 more: quantize it" in lines
    two = table(finding("add", fix="fold it"), *(finding(f"conv{index}", fix="quantize it") for index in range(3)))
    assert "conv0, conv1, conv2: quantize it" in two


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred"])
def test_names_stay_on_their_line(name: str) -> None:
    shown = table(finding(name, fix="one"), finding("b", fix=f"as {name}"))
    assert name not in shown
    assert f"as {name.encode('unicode_escape').decode()}" in shown
