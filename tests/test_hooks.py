"""What was added to the call of a module is kept, or refused: hooks, a forward of its own, an overridden __call__."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxq

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.flatten(self.pool(self.dropout(self.relu(self.bn(self.conv(x)))))) * scale  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.fc = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x, scale=2.0))  # type: ignore[no-any-return]


def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


def after(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, output: output * 3)


def before(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, args: (args[0] * 3, *args[1:]))


def before_by_name(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 3,), kwargs), with_kwargs=True)


def after_by_name(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, kwargs, output: output * 3, with_kwargs=True)


def method(module: nn.Module) -> None:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs) * 3

    module.forward = types.MethodType(forward, module)


def partial(module: nn.Module) -> None:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs) * 3

    module.forward = functools.partial(forward, module)


def call_impl(module: nn.Module) -> None:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(self)._call_impl(self, *args, **kwargs) * 3

    module._call_impl = types.MethodType(call, module)  # type: ignore[assignment]


CHANGES = {
    "hook": after, "pre-hook": before, "hook with kwargs": after_by_name, "pre-hook with kwargs": before_by_name,
    "method": method, "partial": partial, "the call around it": call_impl,
}  # fmt: skip
PATHS = ["block", "block.conv", "block.bn", "block.relu", "block.dropout", "block.pool", "block.flatten", "fc"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_call_is_kept(change: Callable[[nn.Module], None], path: str) -> None:
    plain, model = net(), net()
    change(model.get_submodule(path))
    expected = model(X)
    assert not torch.allclose(expected, plain(X), atol=0.1)
    prepared = fxq.prepare(model, X, "onnxruntime", verify=True)
    fxq.calibrate(prepared, [X], progress=False)
    error = (fxq.convert(prepared)(X) - expected).norm() / expected.norm()
    assert error < 0.05  # int8 makes some hundredths, a lost factor of three makes all the difference
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("path", ["block.conv", "fc"])
@pytest.mark.parametrize("change", [after, method], ids=["hook", "method"])
def test_a_changed_layer_stays_in_float_with_a_reason(change: Callable[[nn.Module], None], path: str) -> None:
    model = net()
    change(model.get_submodule(path))
    prepared = fxq.prepare(model)
    assert "does not come along into integers" in fxq.explain(prepared)[path].reason


def test_hooks_on_torchs_transformers_are_kept_without_example_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)).eval()
    after(model[0])
    before(model[0].layers[0])
    prepared = fxq.prepare(model, None, fxq.recipe("tensorrt").with_rules(("*", None)))
    x = X[0, :, 0][None][:, :6].repeat(1, 1, 2)[..., :8]
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), model(x))


@pytest.mark.parametrize("path", ["block.conv", "fc"])
def test_parametrized_layers_are_no_changed_ones(path: str) -> None:
    model = net()
    parametrizations.weight_norm(model.get_submodule(path))
    prepared = fxq.prepare(model, X, verify=True)
    assert [tensor.role for tensor in fxq.explain(prepared)[path].quantized] == ["input", "weight"]


def _capture(model: Any) -> None:
    original = model.fc.forward
    model.fc.forward = lambda x: original(x) * 3


def _capture_in_hook(model: Any) -> None:
    model.fc.register_forward_hook(lambda module, args, output: output + model.fc.bias)


def _root_hook(model: Any) -> None:
    after(model)


def _call(model: Any) -> None:
    class Tripled(Net):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) * 3

    model.__class__ = Tripled


REFUSED = {
    "a forward that holds the module": (_capture, r"module 'fc' \(Linear\) has its forward replaced .*in its closure"),
    "a hook that holds a module": (_capture_in_hook, r"module 'fc' \(Linear\) has forward hooks, .*in its closure"),
    "root": (_root_hook, r"the model \(Net\) has forward hooks"),
    "call": (_call, r"the model \(Tripled\) overrides __call__"),
}


@pytest.mark.parametrize(("change", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_graph_or_a_copy_cannot_hold_is_refused(change: Callable[[Any], None], text: str) -> None:
    model = net()
    change(model)
    with pytest.raises(fxq.TraceError, match=text):
        fxq.prepare(model)


@contextmanager
def hook_of_all_modules(register: Any) -> Iterator[None]:
    handle = register(lambda *args: None)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "register",
    [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook],
    ids=["after", "before"],
)
def test_hooks_of_all_modules_are_refused(register: Any) -> None:
    with hook_of_all_modules(register), pytest.raises(fxq.TraceError, match="registered for all modules"):
        fxq.prepare(net())


def test_an_overridden_call_is_traced_and_refused_on_a_leaf() -> None:
    class Tripled(Block):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 3

    model = net()
    model.block = Tripled().eval()
    recipe = fxq.recipe("tensorrt").with_rules(("*", None))
    torch.testing.assert_close(fxq.prepare(model, None, recipe)(X), model(X))
    with pytest.raises(fxq.TraceError, match=r"leaf 'block' \(Tripled\) overrides __call__"):
        fxq.prepare(model, None, recipe.replace(leaf_modules=("block",)))


def test_a_hook_put_on_a_quantized_layer_is_not_lost_by_convert() -> None:
    prepared = fxq.prepare(net(), X)
    fxq.calibrate(prepared, [X], progress=False)
    after(prepared.get_submodule("fc"))
    with pytest.raises(fxq.PassError, match=r"the quantized module 'fc' apart, which has forward hooks"):
        fxq.convert(prepared)


def test_backward_hooks_keep_a_layer_in_float_for_training_and_the_others_are_named() -> None:
    model = net()
    seen: list[str] = []
    for path in ("fc", "block", "block.relu"):
        model.get_submodule(path).register_full_backward_hook(lambda *args, path=path: seen.append(path))
    assert type(fxq.prepare(model, X).get_submodule("fc")) is fxq.nn.QuantLinear
    with pytest.warns(UserWarning, match="backward hooks do not come along .* modules 'block'$"):
        prepared = fxq.prepare(model, X, qat=True)
    assert "backward hooks" in fxq.explain(prepared)["fc"].reason
    prepared.train()(X).sum().backward()
    assert seen == ["fc", "block.relu"]
