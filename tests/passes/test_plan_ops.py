from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq import TensorQuantizer
from fxq.runtimes import count_kinds, get_runtime
from fxq.testing import assert_rewrites
from fxq_passes import FunctionalToModule, PlanOps

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
PASSES = [FunctionalToModule(), PlanOps()]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


def test_tensorrt_quantizes_the_inputs_of_layers_and_not_their_outputs() -> None:
    assert_rewrites(
        PASSES,
        model=Net(),
        inputs=X,
        before="""
            x = input
            conv = Conv2d[conv](x)
            act = ReLU[act](conv)
            mean = .mean(act, (2, 3))
            fc = Linear[fc](mean)
            return fc
        """,
        after="""
            x = input
            conv = Conv2d[conv](x)  # input 0: int8 per tensor; weight: int8 per channel (axis 0)
            act = ReLU[act](conv)
            mean = .mean(act, (2, 3))
            fc = Linear[fc](mean)  # input 0: int8 per tensor; weight: int8 per channel (axis 0)
            return fc
        """,
    )


def test_onnxruntime_quantizes_outputs_too_behind_the_activation() -> None:
    assert_rewrites(
        PASSES,
        model=Net(),
        inputs=X,
        target="onnxruntime",
        after="""
            x = input
            conv = Conv2d[conv](x)  # input 0: uint8 affine per tensor; weight: int8 per channel (axis 0)
            act = ReLU[act](conv)  # output: uint8 affine per tensor
            adaptive_avg_pool2d = AdaptiveAvgPool2d[adaptiveavgpool2d](act)  # input 0: uint8 affine per tensor; output: uint8 affine per tensor
            mean = .flatten(adaptive_avg_pool2d, 1)
            fc = Linear[fc](mean)  # input 0: uint8 affine per tensor; weight: int8 per channel (axis 0)
            return fc
        """,  # noqa: E501
    )


def test_openvino_quantizes_inputs_only() -> None:
    prepared = fxq.prepare(Net().eval(), X, recipe="openvino")
    assert fxq.explain(prepared).counts == {"input": 2, "weight": 2}


class Pooled(nn.Module):
    """A stem whose pooling a convolution reads, and ``behind`` something else."""

    def __init__(self, behind: Any = None) -> None:
        super().__init__()
        self.conv, self.pool, self.last, self.behind = nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), behind

    def forward(self, x: Tensor) -> Any:
        y = self.pool(self.conv(x).relu())
        return self.last(y) if self.behind is None else (self.last(y), self.behind(y))


def test_openvino_pools_codes_where_all_that_read_the_pool_take_them(tmp_path: Path) -> None:
    converted = fxq.quantize(Pooled().eval(), [X], "openvino", X, progress=False)
    fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False, check=False)
    ops = get_runtime("openvino").executed_ops(tmp_path / "model.onnx")
    (pool,) = [op for op in ops if op.kind == "Pooling"]
    assert pool.input_dtypes == pool.output_dtypes == ("uint8",)
    assert "FakeQuantize" not in count_kinds(ops)
    prepared = fxq.prepare(Pooled(torch.sin).eval(), X, "openvino")
    assert not fxq.explain(prepared)["pool"].quantized


class Binary(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x, y)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Queries and keys of both signs, and weights of the values that are never negative."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).transpose(-1, -2)).softmax(-1)
        return self.out(weights @ self.value(x))  # type: ignore[no-any-return]


def test_openvino_multiplies_activations_in_integers(tmp_path: Path) -> None:
    x = torch.randn(1, 8, 16)
    converted = fxq.quantize(Attention().eval(), [x] * 2, "openvino", x, progress=False)
    read = [tensor.descriptor for name in ("matmul", "matmul_1") for tensor in fxq.explain(converted)[name].quantized]
    assert read == ["int8 per tensor", "int8 per tensor", "uint8 affine per tensor", "int8 per tensor"]
    fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False, check=False)
    ops = get_runtime("openvino").executed_ops(tmp_path / "model.onnx")
    products = [op for op in ops if {"matmul/MatMul", "matmul_1/MatMul"} & set(op.fused)]
    assert products
    # Fused into one kernel where the machine has one; else the second product reads what softmax gives, in uint8.
    assert {dtype for op in products for dtype in op.input_dtypes} <= {"int8", "uint8"}


class Cached(Attention):
    """Keys of now behind those of before: what is joined is read in another format than joining it takes."""

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.cat([self.key(x), self.value(x)], 1)
        return self.out(self.query(x) @ keys.transpose(-1, -2))  # type: ignore[no-any-return]


def test_a_concatenation_stays_in_float_in_front_of_another_format() -> None:
    x = torch.randn(1, 8, 16)
    found = fxq.explain(fxq.prepare(Cached().eval(), x, "openvino"))
    assert not found["cat"].quantized
    assert [tensor.descriptor for tensor in found["matmul"].quantized] == ["int8 per tensor"] * 2


def test_a_pool_stays_in_float_beside_another_format() -> None:
    class Beside(Pooled):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return self.last(self.pool(y)), y @ y

    found = fxq.explain(fxq.prepare(Beside().eval(), torch.randn(1, 4, 8, 8), "openvino"))
    assert not found["pool"].quantized
    assert found["last"].quantized


LEFT: dict[str, tuple[Any, Any, Any, str, str]] = {
    "number": (lambda x, y: x + 1 + 0 * y, X, X, "add", "one operand is a number"),
    "integers": (lambda x, y: x + y, X, X.int(), "add", "input 'y' is torch.int32"),
    "vector": (lambda x, y: x @ y, X[0, 0], X[0, 0, 0], "matmul", "matrix times vector gains nothing in integers"),
    "mask": (
        lambda x, y: F.softmax(x + y, dim=-1), X, X, "add",
        "adds a mask before a softmax, which may hold minus infinity",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "x", "y", "node", "why"), LEFT.values(), ids=LEFT)
def test_an_operation_that_gains_nothing_stays_in_float(body: Any, x: Tensor, y: Tensor, node: str, why: str) -> None:
    prepared = fxq.prepare(Binary(body).eval(), (x, y), recipe="onnxruntime")
    assert fxq.explain(prepared)[node].reason == why


def test_both_operands_of_a_product_of_activations_are_quantized() -> None:
    assert_rewrites(
        PASSES,
        model=Binary(torch.bmm),
        inputs=(X[0], X[1]),
        after="""
            x = input
            y = input
            bmm = matmul(x, y)  # input 0: int8 per tensor; input 1: int8 per tensor
            return bmm
        """,
    )


def test_a_rule_leaves_an_operation_in_float_or_gives_it_another_descriptor() -> None:
    wide = fxq.QConfig(activation=fxq.QuantDescriptor(narrow_range=True))
    prepared = fxq.prepare(Net().eval(), X, recipe=fxq.recipe("tensorrt").with_rules(("conv", None), ("fc", wide)))
    assert fxq.explain(prepared)["conv"].reason == "rule ('conv', None) leaves it in float"
    quantizer = prepared.get_submodule("fc_input_quantizer")
    assert isinstance(quantizer, fxq.TensorQuantizer)
    assert quantizer.descriptor.narrow_range


def test_a_layer_whose_weight_the_target_keeps_in_float_gets_no_input_either() -> None:
    target = fxq.Target("mine", (fxq.OpRule("conv", inputs=True, weight=True), fxq.OpRule("linear", inputs=True)))
    explained = fxq.explain(fxq.prepare(Net().eval(), X, recipe=fxq.Recipe(target=target)))
    assert explained["fc"].reason == "mine does not quantize its weight"
    assert explained["conv"].is_quantized


def test_activations_that_the_target_cannot_run_are_an_error_that_names_the_operation() -> None:
    recipe = fxq.recipe("tensorrt").replace(default=fxq.QConfig(activation=fxq.QuantDescriptor(num_bits=4)))
    with pytest.raises(fxq.TargetError, match=r"'conv' \(the default of the recipe\): target 'tensorrt' has no 4-bit"):
        fxq.prepare(Net().eval(), X, recipe=recipe)


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.conv(x)).transpose(2, 3))


def test_a_layer_norm_is_quantized_at_its_input_only_behind_a_convolution() -> None:
    prepared = fxq.prepare(ConvNorm(nn.Conv2d(4, 4, 1)).eval(), X)
    assert fxq.explain(prepared)["norm"].quantized[0].why == "input of a layer_norm that a convolution computes"
    assert not fxq.explain(fxq.prepare(ConvNorm(nn.Sigmoid()).eval(), X))["norm"].is_quantized


class Concat(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1), 2))


def test_a_concatenation_is_quantized_only_where_all_that_read_it_are() -> None:
    explained = fxq.explain(fxq.prepare(Concat(nn.Conv2d(8, 4, 1)).eval(), X))
    assert [tensor.why for tensor in explained["cat"].quantized] == ["cat read by quantized operations only"] * 2
    explained = fxq.explain(fxq.prepare(Concat(nn.Sigmoid()).eval(), X))
    assert explained["cat"].reason == "not all that read it take quantized input: all operands or none"


def test_a_quantizer_placed_by_hand_is_respected() -> None:
    hand = fxq.TensorQuantizer(fxq.QuantDescriptor(num_bits=4))
    prepared = fxq.prepare(nn.Sequential(hand, nn.Conv2d(4, 4, 1)).eval(), X)
    assert [tensor.pass_name for tensor in fxq.explain(prepared)["1"].quantized] == ["by hand", "plan_ops"]


def test_a_layer_placed_by_hand_keeps_its_own_input_quantizer() -> None:
    prepared = fxq.prepare(nn.Sequential(fxq.nn.QuantConv2d(4, 4, 1)).eval(), X)
    assert [path for path, module in prepared.named_modules() if isinstance(module, fxq.TensorQuantizer)] == [
        "0._input_quantizer",
        "0._weight_quantizer",
    ]


def test_a_module_called_twice_is_planned_at_each_call() -> None:
    layer = nn.Conv2d(4, 4, 1)
    prepared = fxq.prepare(nn.Sequential(layer, nn.ReLU(), layer).eval(), X)
    assert fxq.explain(prepared).counts == {"input": 2, "weight": 2}


class Stream(nn.Module):
    """Two residual blocks of a transformer's shape: the second add is read by a norm, the first by both."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), norm

    def forward(self, x: Tensor) -> Tensor:
        first = x + self.a(x)
        return self.norm(first + self.b(first))


def test_a_stream_that_a_layer_norm_reads_stays_in_float_on_onnxruntime() -> None:
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    reason = "'norm' (layer_norm) reads it in float: so does the stream that it is part of"
    record = fxq.prepare(Stream(nn.LayerNorm(8)).eval(), tokens, "onnxruntime").meta["fxq"].record
    assert [entry.text for name in ("add", "add_1") for entry in record.skipped(name)] == [reason, reason]


def test_a_stream_that_only_integer_operations_read_is_quantized_on_onnxruntime() -> None:
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    record = fxq.prepare(Stream(nn.Linear(8, 8)).eval(), tokens, "onnxruntime").meta["fxq"].record
    assert [entry for name in ("add", "add_1") for entry in record.skipped(name)] == []


class Similarity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = TensorQuantizer(), TensorQuantizer()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(self.left(a), self.right(b).transpose(-2, -1))


def test_a_quantizer_placed_by_hand_counts_behind_what_only_moves_its_values() -> None:
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    prepared = fxq.prepare(Similarity().eval(), (tokens, tokens), "tensorrt")
    quantizers = [path for path, module in prepared.named_modules() if isinstance(module, TensorQuantizer)]
    assert quantizers == ["left", "right"]


class Detector(nn.Module):
    """Boxes in pixels and scores from 0 to 1, joined for what reads them."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.boxes, self.scores, self.reader = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1), reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat((self.boxes(x).sigmoid() * 640, self.scores(x).sigmoid()), 1).relu())


@pytest.mark.parametrize("reader", [nn.Identity(), nn.Flatten(2), nn.Softmax(1)], ids=["output", "reshape", "float"])
def test_a_concatenation_that_nothing_reads_in_integers_stays_in_float(reader: nn.Module) -> None:
    explained = fxq.explain(fxq.prepare(Detector(reader).eval(), X, "onnxruntime"))
    # What a sigmoid writes has a quantizer of its own; the concatenation adds none.
    assert {tensor.quantizer for tensor in explained["cat"].quantized} == {"sigmoid_1_output_quantizer"}
    assert "in float its members keep their own ranges" in explained["cat"].reason


def test_a_concatenation_that_a_convolution_reads_behind_others_is_quantized() -> None:
    reader = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(7, 4, 1))
    explained = fxq.explain(fxq.prepare(Detector(reader).eval(), X, "onnxruntime"))
    assert "input" in {tensor.role for tensor in explained["cat"].quantized}


def test_what_scales_a_float_activation_stays_in_float() -> None:
    class Scaled(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.first, self.activation, self.last = nn.Conv2d(4, 4, 1), activation, nn.Conv2d(4, 4, 1)
            self.register_buffer("factor", torch.tensor([1.5]))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.activation(self.first(x)) * self.factor)

    explained = fxq.explain(fxq.prepare(Scaled(nn.Hardswish()).eval(), X, "onnxruntime"))
    assert explained["mul"].reason == "scales or shifts by a constant what 'activation' gives in float"
    assert fxq.explain(fxq.prepare(Scaled(nn.Sigmoid()).eval(), X, "onnxruntime"))["mul"].is_quantized


class Spectrogram(nn.Module):
    """A magnitude, compressed: what models for sound begin with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().sum(1, keepdim=True).sqrt() + 1e-6
        return self.last(size.pow(0.3).transpose(2, 3) * (x.sin() / size + 2 * torch.cos(x)).transpose(2, 3))


def test_products_and_sums_of_what_float_kernels_give_stay_in_float() -> None:
    """Quantizers would round each operand first, and save no kernel."""
    model = Spectrogram().eval()
    explained = fxq.explain(fxq.prepare(model, X, "onnxruntime"))
    assert explained["add_1"].reason == "'truediv' and 'mul' give floats, which quantizers would round first"
    assert explained["mul_1"].reason == "'pow_1' and 'add_1' give floats, which quantizers would round first"
    asked = fxq.recipe("onnxruntime").with_rules(("mul_1", fxq.recipe("onnxruntime").default))
    assert fxq.explain(fxq.prepare(model, X, asked))["mul_1"].is_quantized


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "cast": lambda x: x.float(),
    "copy": torch.clone,
    "flip": lambda x: x.flip(3),
    "number": lambda x: x * 0.5,
    "divided by a number": lambda x: x / 2,
}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED.keys())
def test_sums_of_what_convolutions_give_are_integers_behind_copies_too(
    move: Callable[[Tensor], Tensor], target: str
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = move(self.stem(x))
            return self.last(x + move(self.branch(x)))

    assert fxq.explain(fxq.prepare(Residual().eval(), X, target))["add"].is_quantized


def test_what_is_no_float_is_named_where_it_is_added() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 4)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.last(x + (ids.cumsum(1) + ids.abs()).unsqueeze(-1))

    inputs = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
    assert "is torch.int64" in fxq.explain(fxq.prepare(Counted().eval(), inputs, "onnxruntime"))["add"].reason


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.Sigmoid()], ids=["leaky_relu", "sigmoid"])
def test_an_activation_of_floats_stays_in_float_on_onnxruntime(activation: nn.Module) -> None:
    """A quantizer in front of it rounds once more, and saves no kernel: one behind it, or before it, is needed."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), activation, nn.Conv2d(4, 4, 1), activation)
    assert_rewrites(
        PASSES,
        model=model,
        inputs=X,
        target="onnxruntime",
        after="""
            input_1 = input
            _0 = Conv2d[0](input_1)  # input 0: uint8 affine per tensor; weight: int8 per channel (axis 0); output: uint8 affine per tensor
            _1 = GroupNorm[1](_0)
            _2 = ACTIVATION[2](_1)
            _3 = Conv2d[3](_2)  # input 0: uint8 affine per tensor; weight: int8 per channel (axis 0); output: uint8 affine per tensor
            _2_1 = ACTIVATION[2](_3)  # input 0: uint8 affine per tensor; output: uint8 affine per tensor
            return _2_1
        """.replace("ACTIVATION", type(activation).__name__),  # noqa: E501
    )
    asked = fxq.recipe("onnxruntime").with_rules(("2", fxq.recipe("onnxruntime").default))
    assert fxq.explain(fxq.prepare(model.eval(), X, asked))["2"].is_quantized
