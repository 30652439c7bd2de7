from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import graph_text
from fxq.graph.float_model import in_float
from fxq.graph.trace import trace
from fxq.testing import assert_rewrites
from fxq_passes import FunctionalToModule
from fxq_passes.canonical.canonical_forms import CANONICAL, CLAMPS, FUNCTIONS, METHODS, WEIGHTED, ModuleForm


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Unary(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Binary(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def name_of(function: Any) -> str:
    return function if isinstance(function, str) else f"{function.__module__}.{function.__name__}"


def rewritten(model: nn.Module, *inputs: Tensor) -> list[str]:
    """Run the pass, which ``assert_rewrites`` compares with the traced graph on the inputs; return the text."""
    prepared = fxq.prepare(
        model.eval(), inputs, recipe=fxq.recipe("tensorrt").replace(passes=("functional_to_module",)), verify=True
    )
    # The module calls the function that it stands for.
    torch.testing.assert_close(prepared(*inputs), model(*inputs), rtol=0, atol=0)
    text = graph_text(prepared)
    assert_rewrites([FunctionalToModule()], model=model, inputs=inputs, after=text)
    return text.splitlines()


def calls_of(function: Any, form: ModuleForm) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return arguments behind the input, positional and by keyword, that set each parameter of the module."""
    values = {
        "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True, "return_indices": False,
        "count_include_pad": False, "divisor_override": None, "output_size": 2, "dim": 1, "min_val": -0.5,
        "max_val": 0.25, "negative_slope": 0.3, "alpha": 0.4, "approximate": "tanh",
    }  # fmt: skip
    options = {name: values[name] for name in form.parameters}
    if function is F.avg_pool2d or function is F.avg_pool3d:
        options["divisor_override"] = 5
    required = [name for name in form.parameters if name in ("kernel_size", "output_size", "dim")]
    calls = [((), options)] if options else [((), {})]
    if function is not F.gelu:  # approximate is keyword-only
        calls.append((tuple(options.values()), {}))
    return [*calls, ((), {name: options[name] for name in required})]


UNARY = [
    pytest.param(function, form, args, kwargs, id=f"{name_of(function)}-{index}")
    for function, form in FUNCTIONS.items()
    for index, (args, kwargs) in enumerate(calls_of(function, form))
]


@pytest.mark.parametrize(("function", "form", "args", "kwargs"), UNARY)
def test_every_function_in_the_table_becomes_its_module(
    function: Any, form: ModuleForm, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    dimensions = next((int(char) for char in form.module.__name__ if char in "123"), 2)
    x = random(2, 3, *[8] * dimensions)
    text = rewritten(Unary(lambda x: function(x, *args, **kwargs)), x)
    assert f"= {form.module.__name__}[" in text[1]
    text = rewritten(Unary(lambda x: function(input=x, **kwargs)), x) if not args else text
    assert f"= {form.module.__name__}[" in text[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_the_table_becomes_its_module(method: str) -> None:
    arguments = (1,) if method == "softmax" else ()
    text = rewritten(Unary(lambda x: getattr(x, method)(*arguments)), random(2, 3))
    assert f"= {METHODS[method].module.__name__}[" in text[1]


BOUNDS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "relu": ((0,), {}, "ReLU["),
    "relu by keyword": ((), {"min": 0.0}, "ReLU["),
    "relu6": ((0, 6), {}, "ReLU6["),
    "two bounds": ((), {"min": -1, "max": 2.5}, "Hardtanh["),
    "upper bound only": ((), {"max": 1.0}, "cl"),
    "empty range": ((1.0, 1.0), {}, "cl"),
}


@pytest.mark.parametrize("function", CLAMPS, ids=name_of)
@pytest.mark.parametrize(("args", "kwargs", "callee"), BOUNDS.values(), ids=BOUNDS)
def test_a_clamp_becomes_the_activation_with_its_bounds(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], callee: str
) -> None:
    if isinstance(function, str):
        text = rewritten(Unary(lambda x: getattr(x, function)(*args, **kwargs)), random(2, 3) * 4)
    else:
        text = rewritten(Unary(lambda x: function(x, *args, **kwargs)), random(2, 3) * 4)
    assert callee in text[1]


def operands(function: Any) -> tuple[Tensor, Tensor]:
    name = name_of(function)
    if "bmm" in name:
        return random(2, 3, 4), random(2, 4, 5, seed=1)
    return (
        (random(3, 4), random(4, 5, seed=1))
        if "mm" in name or "matmul" in name
        else (random(3, 4), random(3, 4, seed=1))
    )


@pytest.mark.parametrize("function", CANONICAL, ids=name_of)
def test_every_spelling_of_an_operation_becomes_the_canonical_function(function: Any) -> None:
    canonical = CANONICAL[function]
    x, y = operands(function)
    if canonical is torch.cat:
        forms = [lambda x, y: function([x, y], 1), lambda x, y: function(tensors=[x, y], dim=1)]
    elif isinstance(function, str):
        forms = [lambda x, y: getattr(x, function)(y)]
    else:
        forms = [function]
        other = "mat2" if function in (torch.mm, torch.bmm) else "other"
        if function.__module__ != "_operator":
            forms.append(lambda x, y: function(input=x, **{other: y}))
    for form in forms:
        text = rewritten(Binary(form), x, y)
        inputs = "[x, y], 1" if canonical is torch.cat else "x, y"
        assert text[2].endswith(f"= {canonical.__name__}({inputs})")


LEFT: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "rounding mode": (lambda x, y: x.div(y, rounding_mode="floor"), "its rounding_mode or out has no counterpart"),
    "dtype": (lambda x, y: F.softmax(x, dim=1, dtype=torch.float64) + y, "Softmax has no dtype"),
    "computed kernel": (lambda x, y: F.avg_pool2d(x, x.shape[2:]) + y, "its options are computed in the graph"),
    "tensor bound": (lambda x, y: torch.clamp(x, min=y), "clamps to bounds that no activation module has"),
    "integers": (lambda x, y: x.int().clamp(0, 6) + y, "clamps torch.int32, which is no activation"),
    "computed weight": (lambda x, y: F.linear(x, y[0, 0] * 2), "its weight or bias is computed in the graph"),
}


@pytest.mark.parametrize(("body", "why"), LEFT.values(), ids=LEFT)
def test_a_spelling_that_no_module_has_is_left_alone(body: Callable[[Tensor, Tensor], Any], why: str) -> None:
    model, inputs = Binary(body).eval(), (random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1))
    text = graph_text(trace(model, inputs))
    record = assert_rewrites([FunctionalToModule()], model=model, inputs=inputs, after=text)
    assert record.of("functional_to_module", "skip")[0].text.startswith(why)


class Holder(nn.Module):
    """Holds a weight and a bias, and calls a function with them."""

    def __init__(self, function: Any, weight: Tensor, bias: Tensor | None, **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias, **self.options)  # type: ignore[no-any-return]


LAYERS = [
    (F.conv1d, (6, 2, 3), (2, 4, 9), {"stride": 2, "padding": 1, "groups": 2}),
    (F.conv2d, (6, 4, 3, 3), (2, 4, 9, 9), {"padding": "same", "dilation": 2}),
    (F.conv3d, (6, 4, 1, 3, 3), (2, 4, 5, 5, 5), {}),
    (F.conv_transpose1d, (4, 3, 3), (2, 4, 9), {"stride": 2, "groups": 2, "output_padding": 1}),
    (F.conv_transpose2d, (4, 6, 3, 3), (2, 4, 5, 5), {"padding": 1, "dilation": 2}),
    (F.conv_transpose3d, (4, 6, 3, 3, 3), (2, 4, 3, 3, 3), {"stride": (1, 2, 1)}),
    (F.linear, (6, 4), (2, 4), {}),
]


@pytest.mark.parametrize(("function", "weight", "x", "options"), LAYERS, ids=[name_of(case[0]) for case in LAYERS])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_on_stored_parameters_becomes_its_module(
    function: Any, weight: tuple[int, ...], x: tuple[int, ...], options: dict[str, Any], has_bias: bool
) -> None:
    model = nn.Sequential(Holder(function, random(*weight), random(6, seed=2) if has_bias else None, **options)).eval()
    layer = WEIGHTED[function].module.__name__
    assert_rewrites(
        [FunctionalToModule()],
        model=model,
        inputs=random(*x),
        after=f"""
            input_1 = input
            {name_of(function).rpartition(".")[2]} = {layer}[0](input_1)
            return {name_of(function).rpartition(".")[2]}
        """,
    )


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(torch.relu(F.conv2d(x, self.weight)), self.weight)


def test_a_functional_layer_called_twice_keeps_one_weight_and_one_quantizer() -> None:
    assert_rewrites(
        [FunctionalToModule()],
        model=CallsTwice(),
        inputs=random(1, 4, 5, 5),
        after="""
            x = input
            conv2d = Conv2d[conv2d](x)
            relu = ReLU[relu](conv2d)
            conv2d_1 = Conv2d[conv2d](relu)
            return conv2d_1
        """,
    )


class TwoWeights(nn.Module):
    """A module with two weights of its own and a child: none may get lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4, seed=1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.relu(F.linear(x, self.first)), self.second)


def test_a_module_with_more_than_one_weight_keeps_them_all() -> None:
    assert_rewrites(
        [FunctionalToModule()],
        model=nn.Sequential(TwoWeights()),
        inputs=random(2, 4),
        after="""
            input_1 = input
            linear = Linear[0.linear](input_1)
            _0_relu = ReLU[0.relu](linear)
            linear_1 = Linear[0.linear_1](_0_relu)
            return linear_1
        """,
    )


class TakesTheName(nn.Module):
    """Has a child at the path that the activation's module would get."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.relu(x))


def test_a_path_that_is_taken_is_left_to_its_owner() -> None:
    assert_rewrites(
        [FunctionalToModule()],
        model=TakesTheName(),
        inputs=random(2, 4),
        after="""
            x = input
            relu_0 = Linear[relu.0](x)
            relu = ReLU[relu_1](relu_0)
            return relu
        """,
    )


class TiedToEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.embedding(x), self.embedding.weight)


def test_a_weight_tied_to_an_embedding_stays_tied() -> None:
    ids = torch.tensor([[1, 2, 3]])
    prepared = fxq.prepare(
        TiedToEmbedding().eval(), ids, recipe=fxq.recipe("tensorrt").replace(passes=("functional_to_module",))
    )
    assert prepared.embedding_1.weight is prepared.embedding.weight  # type: ignore[union-attr]
    assert graph_text(prepared).splitlines()[2] == "linear = Linear[embedding_1](embedding)"


@pytest.mark.parametrize("function", [F.batch_norm, torch.batch_norm], ids=["F", "torch"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 4, 4), (2, 3, 4, 4, 4)], ids=len)
def test_a_functional_batch_norm_becomes_its_module(function: Any, shape: tuple[int, ...]) -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.running_mean, self.running_var
            if function is F.batch_norm:
                return F.batch_norm(x, mean, var, self.weight, self.bias, eps=0.1)
            return torch.batch_norm(x, self.weight, self.bias, mean, var, False, 0.1, 0.1, True)

    norm = Norm(3)
    for index, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        assert tensor is not None
        tensor.data.copy_(random(3, seed=index).abs() + 0.1)
    text = rewritten(nn.Sequential(norm), random(*shape))
    rank = {2: 1, 3: 1, 4: 2, 5: 3}[len(shape)]
    assert text[1] == f"batch_norm = BatchNorm{rank}d[0](input_1)"


def scaled(m: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, (6,), m.weight, m.bias, eps=0.1)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (scaled, nn.LayerNorm),
        (lambda m, x: F.layer_norm(x, normalized_shape=[6], weight=m.weight), nn.LayerNorm),
        (lambda m, x: torch.layer_norm(x, (6,), m.weight, m.bias), nn.LayerNorm),
        (lambda m, x: F.rms_norm(x, (6,), m.weight), nn.RMSNorm),
        (lambda m, x: F.rms_norm(x, x.shape[1:], m.weight), None),
        (lambda m, x: F.layer_norm(x, (6,)), None),
        (lambda m, x: F.layer_norm(x, (6,), m.weight, m.bias + x[0]), None),
    ],
)
def test_a_functional_norm_with_stored_parameters_becomes_its_module(
    function: Callable[[Any, Tensor], Tensor], kind: type[nn.Module] | None
) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(random(6)), nn.Parameter(random(6, seed=1))

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    model, x = nn.Sequential(Norm(), nn.Linear(6, 2)).eval(), random(3, 6)
    prepared = fxq.prepare(model, x, verify=True)
    found = [type(module) for module in prepared.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    assert found == ([] if kind is None else [kind])
    assert kind is None or type(prepared.get_submodule("0")) is kind
    with torch.no_grad(), in_float(prepared):
        torch.testing.assert_close(prepared(x), model(x))


def test_a_batch_norm_on_batch_statistics_is_left_alone() -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, None, None, training=True)

    model = Norm().eval()
    text = graph_text(trace(model, (random(4, 3),)))
    record = assert_rewrites([FunctionalToModule()], model=model, inputs=random(4, 3), after=text)
    assert record.skipped("batch_norm")[0].text == "normalizes with the statistics of the batch"


def test_without_shapes_a_batch_norm_takes_its_rank_from_the_convolution_before_it() -> None:
    class Norm(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv
            self.register_buffer("mean", torch.ones(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), self.mean, self.var)  # type: ignore[arg-type]

    recipe = fxq.recipe("tensorrt").replace(passes=("functional_to_module",))
    prepared = fxq.prepare(Norm(nn.Conv1d(4, 4, 1)).eval(), recipe=recipe)
    assert "= BatchNorm1d[batch_norm](conv)" in graph_text(prepared)
    prepared = fxq.prepare(Norm(nn.ReLU()).eval(), recipe=recipe)
    assert "give prepare() example_inputs" in fxq.explain(prepared)["batch_norm"].reason


def test_a_rule_for_a_function_holds_for_the_module_that_it_becomes() -> None:
    model = Unary(lambda x: F.avg_pool2d(x, 2)).eval()
    recipe = fxq.recipe("onnxruntime").with_rules(("avg_pool2d", None))
    prepared = fxq.prepare(model, random(1, 3, 4, 4), recipe=recipe)
    assert fxq.explain(prepared).counts == {}
    assert fxq.explain(prepared)["avg_pool2d"].reason == "rule ('avg_pool2d', None) leaves it in float"
