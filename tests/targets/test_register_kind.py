"""The vocabulary of kinds, and words of one's own in it."""

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import kind
from fxq.kinds import check_kind, known_kinds

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """A module of one's own, whose forward tracing would enter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) * x


class WideGate(Gate):
    pass


@torch.fx.wrap
def swish_of_our_own(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.wide = Gate(), WideGate()

    def forward(self, x: Tensor) -> Tensor:
        return swish_of_our_own(torch.special.ndtr(self.wide(self.gate(x))))


def test_modules_and_functions_of_a_registered_kind_stay_whole_and_have_it() -> None:
    fxq.register_kind("test_gate", Gate)
    fxq.register_kind("test_swish", swish_of_our_own)
    fxq.register_kind("test_ndtr", torch.special.ndtr)
    prepared = fxq.prepare(Net().eval(), X)
    found = [(node.name, kind(node)) for node in prepared.graph.nodes if node.op.startswith("call")]
    assert [word for _, word in found] == ["test_gate", "test_gate", "test_ndtr", "test_swish"]
    assert fxq.explain(prepared)["gate"].kind == "test_gate"
    assert "test_gate" in known_kinds()


def test_a_cell_that_registers_again_changes_nothing_but_another_kind_is_refused() -> None:
    fxq.register_kind("test_gate", Gate)
    fxq.register_kind("test_gate", Gate)
    with pytest.raises(
        fxq.PluginError, match=r"test_register_kind.Gate is of kind 'test_gate' and cannot be of kind 'relu'"
    ):
        fxq.register_kind("relu", Gate)
    with pytest.raises(fxq.PluginError, match=r"Linear is of kind 'linear' and cannot be of kind 'test_gate'"):
        fxq.register_kind("test_gate", nn.Linear)


@pytest.mark.parametrize(
    ("word", "operations", "message"),
    [
        ("Not a word", (Gate,), "use lower-case words joined by underscores"),
        ("test_nothing", (), r'belongs to nothing: write fxq.register_kind\("test_nothing", MyModule\)'),
        ("test_instance", (Gate(),), "is for module classes and functions, got Gate"),
        ("test_everything", (nn.Module,), "is for module classes and functions, got <class"),
        ("test_number", (3,), "is for module classes and functions, got 3"),
        ("test_class", (int,), "is for module classes and functions, got <class 'int'>"),
    ],
)
def test_what_cannot_have_a_kind_is_refused(word: str, operations: tuple[object, ...], message: str) -> None:
    with pytest.raises(fxq.PluginError, match=message):
        fxq.register_kind(word, *operations)  # type: ignore[arg-type]


def test_an_unknown_kind_is_an_error_that_suggests_one() -> None:
    with pytest.raises(fxq.TargetError, match=r"^here: there is no kind 'lineer'; did you mean 'linear'\?$"):
        check_kind("lineer", "here")
    with pytest.raises(fxq.TargetError, match=r"there is no kind 'zzz'; fxq.register_kind adds one"):
        check_kind("zzz", "here")
    with pytest.raises(fxq.TargetError, match="there is no kind 3"):
        check_kind(3, "here")
