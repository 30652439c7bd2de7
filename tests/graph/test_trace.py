import copy
import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from fxq.graph.trace import trace


def images(batch: int = 1, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def assert_same(model: nn.Module, traced: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        # The same kernels run in the same order, so that not one bit may differ.
        torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)


class Block(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block()
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x.mean((2, 3)).view(x.size(0), -1))


class Asks(nn.Module):
    """Calls ``question(x)``, which decides with Python what to compute."""

    def __init__(self, question: Any) -> None:
        super().__init__()
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        return self.question(x)  # type: ignore[no-any-return]


def test_modules_stay_nodes_under_their_own_names() -> None:
    model = Net().eval()
    traced = trace(model, (images(),))
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["stem.body.0", "stem.body.1", "stem.body.2", "head"]
    assert traced.get_submodule("stem.body.0") is model.stem.body[0]
    assert traced.state_dict().keys() == model.state_dict().keys()
    assert_same(model, traced, images(2))


def test_a_node_knows_its_shape_its_module_and_its_source_line() -> None:
    traced = trace(Net().eval(), (images(batch=2),))
    assert all("val" in node.meta for node in traced.graph.nodes)
    convolution = next(node for node in traced.graph.nodes if node.target == "stem.body.0")
    assert convolution.meta["val"].shape == (2, 3, 8, 8)
    assert convolution.meta["val"].dtype == torch.float32
    assert [path for path, _ in convolution.meta["nn_module_stack"].values()] == ["stem", "stem.body", "stem.body.0"]
    lines = [line.strip() for line in convolution.stack_trace.splitlines()]
    assert lines[1] == "x = self.stem(x)"
    assert lines[-1] == "return x + self.body(x)"
    assert len(lines) == 4  # file and text of two lines of the model, none of torch's or fxq's


def join_pixels(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h * w)


def replace_corner(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 0, x.shape[3] // 2] = 7.0
    return x


def softmax_made_on_the_spot(x: Tensor) -> Tensor:
    softmax = nn.Softmax(dim=1)
    return softmax(x)  # type: ignore[no-any-return]


QUESTIONS = {
    "shape_equals": lambda x: x + 1 if x.shape[1] == 3 else x,
    "shape_remainder": lambda x: F.pad(x, (0, 1)) if x.shape[-1] % 2 == 0 else x,
    "int_of_size": lambda x: F.interpolate(x, size=(int(x.shape[2] * 1.5), int(x.shape[3] / 2))),
    "len": lambda x: x * len(x.shape) + len(x[0]),
    "range_of_size": lambda x: sum(x[:, :, i] for i in range(x.shape[2])),
    "unpacked_shape": join_pixels,
    "iterated_shape": lambda x: x.reshape(next(size for size in x.shape if size == 3), -1),
    "sum_of_shape": lambda x: x / sum(x.shape[1:]),
    "half_size": lambda x: x.view(x.size(0) // 1, -1)[:, : x.size(1) // 2 + 1],
    "math_of_size": lambda x: x / math.sqrt(x.shape[1]) + math.floor(x.shape[2] / 3),
    "round_and_divmod": lambda x: x * round(x.shape[2] / 3) + divmod(x.shape[2], 3)[1],
    "dim": lambda x: x.flatten(1) if x.dim() == 4 and x.ndim == 4 else x,
    "kind": lambda x: x * 2 if x.is_floating_point() and not x.is_cuda and x.dtype == torch.float32 else x,
    "device": lambda x: x + 1 if x.device == torch.device("cpu") and x.device.type == "cpu" else x,
    "scripting": lambda x: x if torch.jit.is_scripting() else x + 1,
    "assertion": lambda x: [torch._assert(x.shape[1] == 3, "channels"), x + 1][1],
    "max_of_sizes": lambda x: F.adaptive_avg_pool2d(x, max(x.shape[2], x.shape[3]) // 4),
    "attribute": lambda x: x + 1 if hasattr(x, "shape") and not hasattr(x, "tensors") else x,
    "contained": lambda x: x + 1 if 3 in x.shape else x,
    "factory": lambda x: x.flatten(1) + torch.arange(x.shape[1] * 64, dtype=x.dtype) * torch.ones(x.shape[0], 1),
    "module_in_forward": softmax_made_on_the_spot,
    "setitem": replace_corner,
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_python_may_ask_for_shapes(question: Any) -> None:
    model = Asks(question)
    traced = trace(model, (images(),))
    assert_same(model, traced, images())


@pytest.mark.parametrize("name", ["unpacked_shape", "half_size", "factory", "math_of_size", "sum_of_shape"])
def test_a_size_that_is_only_passed_on_works_for_another_batch(name: str) -> None:
    model = Asks(QUESTIONS[name])
    assert_same(model, trace(model, (images(batch=1),)), images(batch=3))


def test_a_decided_question_leaves_no_node() -> None:
    traced = trace(Asks(QUESTIONS["shape_remainder"]), (images(),))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_function", "output"]
    assert {node.name for node in traced.graph.nodes} == {"x", "pad", "output"}


def test_without_inputs_a_plain_model_is_traced_and_weights_still_know_their_shape() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((3, 1, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain if self.gain.shape[0] == 3 else x

    model = Scaled()
    traced = trace(model, None)
    assert_same(model, traced, images(2))
    assert "val" not in next(iter(traced.graph.nodes)).meta


class Options(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, double: bool = False, power: float = 1.0, *, shift: float = 0.0
    ) -> Tensor:
        if mask is not None:
            x = x * mask
        if double:
            x = x * 2
        return x.abs() ** power + shift


@pytest.mark.parametrize("inputs", [None, (images(),)], ids=["no inputs", "inputs"])
def test_the_call_signature_keeps_its_names_and_defaults(inputs: Any) -> None:
    model = Options()
    traced = trace(model, inputs)
    parameters = inspect.signature(traced.forward).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {"x": inspect.Parameter.empty, "mask": None, "double": False, "power": 1.0, "shift": 0.0}
    assert_same(model, traced, images(2))
    assert torch.equal(traced(images(2), power=2.0, shift=1.0), model(images(2), power=2.0, shift=1.0))


def test_a_flag_is_burned_in_and_its_placeholder_says_so() -> None:
    model = Options()
    traced = trace(model, (images(), None, True))
    burned_in = {node.name: node.meta["burned_in"] for node in traced.graph.nodes if "burned_in" in node.meta}
    assert burned_in == {"mask": None, "double": True}
    assert torch.equal(traced(images()), model(images(), None, True))


def test_inputs_may_be_nested_and_starred() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], named: dict[str, Tensor], *more: Tensor) -> dict[str, Tensor]:
            first, second = pair
            total = first + second + sum(more) + sum(item for _, item in named.items())
            return {"total": total, **named}

    model = Nested()
    inputs = ((images(), images()), {"a": images()}, images(), images())
    assert_same(model, trace(model, inputs), *inputs)


class Remembers(nn.Module):
    """Keeps what it computed, as models do that cache a bias or a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last_shape = x.shape
        self.cache["bias"] = self.body.weight.sum() + x.shape[1]
        return self.body(x) + self.cache["bias"]


@pytest.mark.parametrize("leaf_modules", [(), ("1",)], ids=["traced through", "leaf"])
def test_the_model_is_left_as_it_was(leaf_modules: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Remembers()).eval()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    before = [copy.copy(vars(module)) for module in model.modules()]
    traced = trace(model, (images(),), leaf_modules)
    assert [vars(module) for module in model.modules()] == before
    assert model[1].cache == {}
    assert_same(model, traced, images(2))


def test_torch_is_left_as_it_was_even_when_the_model_fails() -> None:
    def fail(x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    before = (
        torch.zeros,
        nn.Module.__call__,
        nn.Module.__getattr__,
        math.sqrt,
        torch.fx._symbolic_trace.is_fx_symbolic_tracing(),
    )
    with pytest.raises(KeyError):
        Asks(fail)(images())
    with pytest.raises(TypeError):
        trace(Asks(fail), (images(),))
    after = (
        torch.zeros,
        nn.Module.__call__,
        nn.Module.__getattr__,
        math.sqrt,
        torch.fx._symbolic_trace.is_fx_symbolic_tracing(),
    )
    assert after == before
    assert torch.overrides._get_current_function_mode_stack() == []


def test_train_and_eval_mode_of_each_module_stay() -> None:
    model = Net().train()
    model.stem.body[1].eval()
    traced = trace(model, (images(),))
    modes = {path: module.training for path, module in traced.named_modules()}
    assert modes == {path: model.get_submodule(path).training for path in modes}
    assert model.stem.body[1].num_batches_tracked == 0


def test_a_buffer_stays_a_buffer_and_keeps_its_persistence() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("variance", torch.full((3, 1, 1), 4.0))
            self.register_buffer("mean", torch.ones(3, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mean) * (self.variance + 1e-5).rsqrt()

    model = Frozen()
    traced = trace(model, (images(),))
    assert traced.state_dict().keys() == {"variance"}
    assert_same(model, traced, images(2))
    traced.variance.fill_(1.0)  # what is computed from a buffer is computed in the graph, not folded while tracing
    model.variance.fill_(1.0)
    assert_same(model, traced, images(2))


def test_a_copy_of_the_traced_model_computes_the_same() -> None:
    model = Net().eval()
    traced = copy.deepcopy(trace(model, (images(),)))
    assert isinstance(traced, GraphModule)
    assert_same(model, traced, images(2))


def test_a_leaf_whose_shape_depends_on_data_is_traced_without_a_value() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    model = nn.Sequential(Positive(), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(model, (images(),), ("Positive",))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert [node.name for node in traced.graph.nodes if "val" in node.meta] == ["input_1"]
    assert_same(model, traced, images(2))
