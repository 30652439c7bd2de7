"""For authors of passes: check what a pass does to a graph, as text, and that it keeps its promises."""

import copy
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.graph.settings import Settings
from fxq.graph.text import graph_text
from fxq.graph.trace import trace
from fxq.number_check import NumberCheck
from fxq.passbase import Pass
from fxq.pipeline import run_passes
from fxq.quant.qconfig import QConfig, Rule
from fxq.record import Record
from fxq.registry import get_target
from fxq.targets import Target


def assert_rewrites(  # noqa: PLR0913 - everything behind the star is a name in the test
    passes: Sequence[Pass],
    *,
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    after: str,
    before: str | None = None,
    target: str | Target = "tensorrt",
    rules: Sequence[tuple[Any, QConfig | None]] = (),
    qat: bool = False,
) -> Record:
    """Run ``passes`` on a model and compare the graph, as text, before and after.

    Also checked: the rules of each pass's stage; that each pass keeps to its tolerance, on ``inputs``; and that
    running all of them a second time changes nothing.

    Args:
        passes: in the order of their stages.
        model: not modified.
        inputs: a tensor or a tuple of positional inputs.
        after: ``graph_text`` of the result; indentation and blank lines around it do not count.
        before: the same for the traced model.
        target: a name, or a Target.
        rules: (match, config) pairs, as in a recipe.
        qat: as in ``prepare``.

    Returns:
        The record, to look up reasons: ``record.skipped("conv1")``.

    Raises:
        AssertionError: a text differs (the message holds a diff), or a second run changed something.
        PassError: a pass failed or broke a promise.
    """
    positional = inputs if isinstance(inputs, tuple) else (inputs,)
    gm = trace(copy.deepcopy(model).eval(), positional)
    settings = Settings(
        target if isinstance(target, Target) else get_target(target),
        rules=tuple(Rule(*rule) for rule in rules),
        qat=qat,
        example_inputs=positional,
    )
    if before is not None:
        _assert_text("before", before, gm)
    record = Record()
    _run(gm, passes, settings, record)
    _assert_text("after", after, gm)
    second = Record()
    _run(gm, passes, settings, second)
    changes = [str(entry) for entry in second.entries if entry.action != "skip"]
    if changes:
        raise AssertionError(f"a second run changed the graph again: {'; '.join(changes)}")
    _assert_text("after a second run", after, gm)
    return record


def _run(gm: GraphModule, passes: Sequence[Pass], settings: Settings, record: Record) -> None:
    assert settings.example_inputs is not None
    for step in passes:  # one at a time: a test runs the passes it names, not whole stages
        run_passes(gm, [step], settings, record, NumberCheck(settings.example_inputs), complete=False)


def _assert_text(when: str, expected: str, gm: GraphModule) -> None:
    wanted, found = textwrap.dedent(expected).strip().splitlines(), graph_text(gm).splitlines()
    wanted = [line.rstrip() for line in wanted]
    if wanted != found:
        diff = "\n".join(difflib.unified_diff(wanted, found, "expected", "found", lineterm="", n=20))
        raise AssertionError(f"the graph {when} the passes differs:\n{diff}")
