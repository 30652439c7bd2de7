"""Models as they come: programs of torch.export, compiled models, parallel wrappers."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fxq
from fxq.errors import InputError

# torch 2.11 says it of itself, where torch.compile is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.drop, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(self.drop((self.conv(x) + x).relu().mean((2, 3))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def program(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (X,), dynamic_shapes=({0: Dim("batch")},))


GIVEN: dict[str, Callable[[nn.Module], Any]] = {
    "program": program,
    "module of a program": lambda model: program(model).module(),
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled and parallel": lambda model: torch.compile(nn.DataParallel(torch.compile(model))),
}


SLOW = ("module of a program", "compiled", "data parallel")  # parts of what "program" and "compiled and parallel" are


@pytest.mark.parametrize(
    "given", [pytest.param(one, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, one in GIVEN.items()]
)
def test_the_model_inside_is_quantized_and_compared_with_what_was_given(
    given: Callable[[nn.Module], Any], net: nn.Module, tmp_path: Path
) -> None:
    model = given(net)
    converted = fxq.quantize(model, [X, X], progress=False)
    expected = fxq.quantize(net, [X, X], progress=False)
    torch.testing.assert_close(converted(X), expected(X))
    explained = fxq.explain(converted)
    assert str(explained.coverage) == "3 of 3 convolutions and linear layers in int8"
    gc.collect()
    assert explained.quality is not None
    assert explained.quality.against == "the original model"
    assert fxq.export_onnx(converted, tmp_path / "net.onnx").other_batch_parity
    prepared = fxq.prepare(model, X, fxq.recipe("tensorrt").with_rules(("fc", None)))
    assert {"body.0.weight", "fc.weight"} <= set(prepared.state_dict())
    assert "2 of 3" in str(fxq.explain(prepared).coverage)


@pytest.mark.usefixtures("process_group")
def test_a_distributed_model_is_taken(net: nn.Module) -> None:
    prepared = fxq.prepare(nn.parallel.DistributedDataParallel(net), X)
    assert "body.0.weight" in prepared.state_dict()
    assert "3 of 3" in str(fxq.explain(prepared).coverage)


def test_compiled_parts_lose_their_wrapper_and_stay_shared(net: nn.Module) -> None:
    compiled = torch.compile(net.body)
    model = nn.Sequential(compiled, net.conv, nn.Sequential(net.conv)).eval()
    prepared = fxq.prepare(model, X)
    assert {"0.0.weight", "1.weight"} <= set(prepared.state_dict())
    assert "2.0.weight" not in dict(prepared.named_parameters())  # as in the model
    assert dict(model.named_children())["0"] is compiled


def test_a_program_brings_its_own_example_inputs(net: nn.Module) -> None:
    prepared = fxq.prepare(program(net))
    assert prepared(X[:3]).shape == (3, 4)
    assert fxq.explain(prepared).traced == "traced by torch.export, for the model is a program of it"
    with pytest.raises(InputError, match=r"is a program of torch.export.*give prepare\(\) example_inputs"):
        fxq.prepare(program(net).module())
    with pytest.raises(InputError, match='leave frontend at "auto"'):
        fxq.prepare(program(net), frontend="symbolic")


def test_a_program_inside_of_a_model_is_taken(net: nn.Module) -> None:
    prepared = fxq.prepare(nn.Sequential(program(net).module(), nn.Linear(4, 2)), X)
    assert "4 of 4" in str(fxq.explain(prepared).coverage)
    assert {"0.body.0.weight", "1.weight"} <= set(prepared.state_dict())


def test_a_program_of_one_size_is_held_to_it(net: nn.Module) -> None:
    prepared = fxq.prepare(torch.export.export(net, (X,)))
    with pytest.raises(InputError, match=r"traced for sizes with x.shape\[0\] == 4"):
        prepared(X[:3])


def test_a_program_exported_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"exported in training mode \('\w+' computes as in training\)"):
        fxq.prepare(program(Net().train()))


def test_a_fully_sharded_model_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(sharded)
    with pytest.raises(InputError, match="spread over processes: load its full state dict"):
        fxq.prepare(sharded, X)
