"""No assertion of the suite has a shape that cannot fail, or that hides what is asserted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent


def idle_assertions(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and reason of each assertion in ``source`` that says less than it seems to."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assert):
            continue
        test = node.test
        if isinstance(test, ast.IfExp):
            yield node.lineno, "a == b if c else d is (a == b) if c else d: assert under an if, or parenthesize"
        elif isinstance(test, ast.Constant | ast.GeneratorExp | ast.Lambda | ast.Tuple | ast.JoinedStr):
            yield node.lineno, "it is never false"
        for part in ast.walk(test):
            if isinstance(part, ast.Compare) and any(_are_same(part.left, other) for other in part.comparators):
                yield node.lineno, "it compares something with itself"


def _are_same(one: ast.expr, other: ast.expr) -> bool:
    return type(one) is type(other) and ast.dump(one) == ast.dump(other)


SHAPES = {
    "assert a == b if c else d": "parenthesize",
    "assert (a == b, 'message')": "never false",
    "assert (a == b for b in c)": "never false",
    "assert True": "never false",
    "assert all(a == a for a in b)": "with itself",
}


@pytest.mark.parametrize(("source", "reason"), SHAPES.items(), ids=SHAPES)
def test_such_a_shape_is_found(source: str, reason: str) -> None:
    ((_, found),) = idle_assertions(source)
    assert reason in found


def test_no_assertion_of_the_suite_has_such_a_shape() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{line}: {reason}"
        for path in sorted([*_ROOT.glob("tests/**/*.py"), *_ROOT.glob("examples/**/*.py")])
        for line, reason in idle_assertions(path.read_text())
    ]
    assert found == []
