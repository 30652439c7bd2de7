import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError, RecipeError, TraceError
from fxq.graph.trace import trace


def images(batch: int = 1, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Resize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., :4] if x.shape[-1] > 4 else x


class Splat(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat([x + 1 for x in xs])


def nested(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), module)).eval()


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def message(error: type[Exception], model: nn.Module, inputs: Any, leaf_modules: Any = ()) -> str:
    with pytest.raises(error) as info:
        trace(model, inputs, leaf_modules)
    return str(info.value)


def test_control_flow_on_data_names_module_line_and_cure() -> None:
    text = message(TraceError, nested(Gate()), (images(),))
    assert "module '1.1' (Gate)" in text
    assert f"{__file__}:{line_of('if x.sum() > 0:')} `if x.sum() > 0:`" in text
    assert "control flow depends on the data in the tensor 'gt'" in text
    assert 'recipe.replace(leaf_modules=("1.1",)); it is then left in float' in text
    assert "pass example_inputs" not in text


@pytest.mark.parametrize("leaf", ["1.1", "1.*", "Gate", "G?te"])
def test_the_cure_works(leaf: str) -> None:
    model = nested(Gate())
    traced = trace(model, (images(),), (leaf,))
    assert "1.1" in [node.target for node in traced.graph.nodes]
    for x in (images(2), -images(2)):
        assert torch.equal(traced(x), model(x))


def test_a_shape_test_without_inputs_asks_for_them() -> None:
    text = message(TraceError, nested(Resize()), None)
    assert "module '1.1' (Resize)" in text
    assert "pass example_inputs, so that shapes are known; or name the module" in text
    trace(nested(Resize()), (images(),))


def test_the_model_itself_cannot_be_a_leaf() -> None:
    text = message(TraceError, Gate(), (images(),))
    assert "cannot trace the model itself (Gate)" in text
    assert "move that code into a submodule" in text


def test_starred_inputs_need_examples() -> None:
    assert "iteration over '_xs'" in message(TraceError, Splat(), None)
    assert torch.equal(trace(Splat(), (images(), images()))(images(), images()), Splat()(images(), images()))


def new_weights(x: Tensor) -> Tensor:
    convolution = nn.Conv2d(3, 3, 1)
    return convolution(x)  # type: ignore[no-any-return]


UNTRACEABLE = {
    "item": lambda x: x * int(x.max().item()),
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "loop": lambda x: [x := x / 2 for _ in range(9) if x.max() > 1][-1],
    "unregistered weights": new_weights,
}


@pytest.mark.parametrize("body", UNTRACEABLE.values(), ids=UNTRACEABLE.keys())
def test_what_depends_on_values_is_a_trace_error(body: Any) -> None:
    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return body(x)

    text = message(TraceError, nested(Custom()), (images() * 9,))
    assert "module '1.1' (Custom)" in text
    assert __file__ in text


def test_a_forward_that_assigns_its_buffer_is_a_trace_error() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    model = nested(Counts())
    assert "buffer 'calls'" in message(TraceError, model, (images(),))
    assert isinstance(model[1][1].calls, Tensor)


MISFITS = {
    "channels": (images(channels=4),),
    "dtype": (images().to(torch.int64),),
    "no tensor": ("text",),
}


@pytest.mark.parametrize("inputs", MISFITS.values(), ids=MISFITS.keys())
def test_inputs_that_the_model_refuses_name_the_module_and_what_it_got(inputs: Any) -> None:
    text = message(InputError, nested(nn.Identity()), inputs)
    assert "module '0' (Conv2d)" in text
    assert "at node '_0'" in text
    assert "for which model(*example_inputs) runs" in text


def test_where_the_model_itself_fails_its_own_words_are_told() -> None:
    """Tracing stops at the test of the data before, which the model passes."""

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1 if x.sum() > 0 else x
            return self.two(self.one(x))  # type: ignore[no-any-return]

    text = message(InputError, Chooses(), (torch.ones(2, 3),))
    assert "`return self.two(self.one(x))" in text
    assert "shapes cannot be multiplied (2x3 and 4x4)" in text


def test_torch_logs_no_traceback_beside_the_error() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        message(InputError, nn.Sequential(nn.Linear(3, 3)), (torch.ones(2, 8),))
    finally:
        logger.removeHandler(handler)
    assert not records
    assert not logger.disabled


def test_inputs_are_described_by_type_and_shape() -> None:
    text = message(InputError, nested(nn.Identity()), (images(channels=4),))
    assert "it got (float32[1, 4, 8, 8])" in text


def test_an_assertion_of_the_model_is_about_the_inputs() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.shape[-1] == 32, "wants 32 pixels")
            return x

    text = message(InputError, nested(Picky()), (images(),))
    assert "module '1.1' (Picky)" in text
    assert "wants 32 pixels" in text


@pytest.mark.parametrize("inputs", [(), (images(), images())], ids=["none", "two"])
def test_a_wrong_number_of_inputs_names_the_parameters(inputs: Any) -> None:
    text = message(InputError, Gate(), inputs)
    assert "takes (x: " in text
    assert f"got {len(inputs)} example inputs" in text


def test_a_leaf_that_is_not_there_is_named_with_what_is_close() -> None:
    text = message(RecipeError, nested(Gate()), (images(),), ("Gaet",))
    assert "'Gaet'" in text
    assert "did you mean 'Gate'?" in text


def test_hooks_around_the_whole_model_are_refused() -> None:
    model = Gate()
    model.register_forward_hook(lambda module, args, output: output)
    assert "forward hooks" in message(TraceError, model, (images(),))


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    model = Resize()
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert "replaced on the instance" in message(TraceError, model, (images(),))
