"""An exported program is decomposed operator by operator, into what tracing it again would make of it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from fxq.export.decompositions import decompose_in_place, decompose_where_needed

TABLE = dict(torch.export.default_decompositions())
IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Called(nn.Module):
    """A function behind a convolution, so that the program has parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def exported(function: Callable[[Tensor], Tensor]) -> ExportedProgram:
    with torch.no_grad():
        model = Called(function).eval()
        return torch.export.export(model, (IMAGE,), dynamic_shapes={"x": {0: Dim("batch")}}, strict=False)


def computed(program: ExportedProgram) -> str:
    """Return what the program computes as one expression, shapes included: where sizes are read does not matter."""
    written: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda read: _Written(written[read]))
        name = node.target if node.op == "call_function" else node.op
        made = [tuple(map(str, value.shape)) for value in [node.meta.get("val")] if isinstance(value, Tensor)]
        written[node] = node.name if node.op == "placeholder" else f"{name}{args}{kwargs or ''}{made or ''}"
    return written[program.graph.output_node()]


class _Written(str):
    """Text that is not quoted inside a tuple."""

    __repr__ = str.__str__


FUNCTIONS = {
    "pool and flatten": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "reshape by a size": lambda x: torch.relu(x).reshape(x.shape[0], -1).softmax(-1),
    "a part of a list": lambda x: torch.cat([part.sigmoid() for part in x.chunk(2, 1)], 1),
    "a view of a view": lambda x: x.flatten(2).unflatten(2, (2, 8)).relu(),
    "nothing to change": lambda x: x.sigmoid() + 1,
    "it becomes its own input": lambda x: F.dropout(x.contiguous(), training=False),
}
# Only the operators whose composite form may be a view: convolutions would be taken apart by this table, see below.
VIEWS = {op: how for op, how in TABLE.items() if "conv" not in str(op)}


@pytest.mark.parametrize("table", [TABLE, VIEWS, {}], ids=["all", "no convolutions", "nothing"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_becomes_what_torch_would_make_of_it(name: str, table: dict[object, Callable[..., object]]) -> None:
    program = exported(FUNCTIONS[name])
    wanted = exported(FUNCTIONS[name]).run_decompositions(dict(table))
    assert decompose_in_place(program, table)
    assert computed(program) == computed(wanted)
    assert [spec.kind for spec in program.graph_signature.output_specs] == [
        spec.kind for spec in wanted.graph_signature.output_specs
    ]
    program.validate()


def test_what_needs_no_decomposing_stays_the_same_nodes() -> None:
    program = exported(lambda x: x.sigmoid().flatten(1))
    conv, sigmoid, flatten = (node for node in program.graph.nodes if node.op == "call_function")
    assert decompose_in_place(program, {})
    kept = [node for node in program.graph.nodes if node.op == "call_function"]
    assert kept[:2] == [conv, sigmoid]
    assert kept[2] is not flatten


@pytest.mark.parametrize(
    "function", [lambda x: x.relu_(), lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=["written", "a constant"]
)
def test_what_only_the_whole_shows_is_left_to_torch(function: Callable[[Tensor], Tensor]) -> None:
    program = exported(function)
    before = computed(program)
    assert not decompose_in_place(program, {})
    assert computed(program) == before
    decompose_where_needed(program)
    assert program.run_decompositions({}) is not program


def test_a_program_that_decomposes_itself_is_still_itself() -> None:
    program = exported(lambda x: x.flatten(1))
    decompose_where_needed(program)
    assert program.run_decompositions({}) is program
    assert "flatten" not in str(program.graph)
    torch.testing.assert_close(program.module()(IMAGE), exported_value(program))


def exported_value(program: ExportedProgram) -> Tensor:
    conv = {name.rpartition(".")[2]: value for name, value in program.state_dict.items()}
    return F.conv2d(IMAGE, conv["weight"], conv["bias"]).flatten(1)
