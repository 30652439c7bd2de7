"""Products with activations quantized on the fly: exact in torch, the same in ONNX Runtime, in one fused kernel."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hand_built import Builder, codes_of, kernels, run, stored
from torch import Tensor, fx

from fxq.errors import ExportError
from fxq.export import ExportOptions, export_onnx
from fxq.export.qdq_rules import check_qdq
from fxq.quant import DYNAMIC_LINEAR, DYNAMIC_MATMUL
from fxq.targets import FileRules

IN, OUT = 16, 8
SHAPES = {"rank 2": (4, IN), "rank 3": (2, 5, IN), "rank 4": (2, 3, 4, IN)}


def weight_of(per_channel: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(OUT, IN, generator=generator), torch.randn(OUT, generator=generator)
    steps = weight.abs().amax(1) / 127 if per_channel else weight.abs().max() / 127
    return codes_of(weight, steps[:, None] if per_channel else steps), steps, bias


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def linear(per_channel: bool = True, with_bias: bool = True, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    build = Builder()
    codes, steps, bias = weight_of(per_channel)
    args = build.input(), build.read("fc.weight", codes), build.read("fc.weight_scale", steps)
    read_bias = build.read("fc.bias", bias.to(dtype)) if with_bias else None
    return build.finish(build.call(DYNAMIC_LINEAR, *args, read_bias))


def integers(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return codes less their zero point, and the step, by the definition of ONNX DynamicQuantizeLinear."""
    values = x.float().numpy()
    low, high = np.minimum(values.min(), 0), np.maximum(values.max(), 0)
    step = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero = np.clip(np.rint(-low / step), 0, 255)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero).astype(np.int64), step


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_linear_is_an_exact_integer_product(shape: tuple[int, ...], per_channel: bool, with_bias: bool) -> None:
    x, (codes, steps, bias) = inputs_of(shape), weight_of(per_channel)
    x_codes, x_step = integers(x)
    expected = (x_codes @ codes.numpy().T.astype(np.int64)) * float(x_step) * steps.double().numpy()
    expected = expected + bias.double().numpy() if with_bias else expected
    result = DYNAMIC_LINEAR(x, codes, steps, bias if with_bias else None)
    # The integers agree; the reference scales them in float64.
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_matmul_quantizes_both_operands_and_broadcasts() -> None:
    a, b = inputs_of((2, 3, 5, 7)), inputs_of((7, 4))
    (a_codes, a_step), (b_codes, b_step) = integers(a), integers(b)
    expected = (a_codes @ b_codes) * float(a_step) * float(b_step)
    np.testing.assert_allclose(DYNAMIC_MATMUL(a, b).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_the_range_holds_zero(sign: int) -> None:
    codes, steps, _ = weight_of(per_channel=True)
    x = sign * (inputs_of((3, IN)).abs() + 5)
    x_codes, x_step = integers(x)
    expected = (x_codes @ codes.numpy().T.astype(np.int64)) * float(x_step) * steps.double().numpy()
    np.testing.assert_allclose(DYNAMIC_LINEAR(x, codes, steps, None).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, IN), (0, IN)], ids=["all zero", "empty"])
def test_an_input_without_range_gives_the_bias(shape: tuple[int, ...]) -> None:
    codes, steps, bias = weight_of(per_channel=True)
    result = DYNAMIC_LINEAR(torch.zeros(shape), codes, steps, bias)
    torch.testing.assert_close(result, bias.expand(shape[0], OUT))


def test_a_long_sum_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, 2**16), generator=generator)
    x[0, :2] = torch.tensor([0, 255])  # step 1
    codes = torch.randint(1, 128, (OUT, 2**16), generator=generator, dtype=torch.int8)  # sums far beyond 2^24
    expected = (x @ codes.long().T).float()
    torch.testing.assert_close(DYNAMIC_LINEAR(x.float(), codes, torch.tensor(1.0), None), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    codes, steps, bias = weight_of(per_channel=True)
    x = inputs_of((3, IN), dtype)
    result = DYNAMIC_LINEAR(x, codes, steps, bias.to(dtype))
    assert result.dtype is dtype
    torch.testing.assert_close(result, DYNAMIC_LINEAR(x.float(), codes, steps, bias.to(dtype).float()).to(dtype))


@pytest.mark.parametrize("op", [DYNAMIC_LINEAR, DYNAMIC_MATMUL], ids=str)
def test_operators_keep_torchs_rules(op: torch._ops.OpOverload) -> None:
    codes, steps, bias = weight_of(per_channel=True)
    args = (
        (inputs_of((2, 3, IN)), codes, steps, bias)
        if op is DYNAMIC_LINEAR
        else (inputs_of((2, 3, 4)), torch.ones(4, 5))
    )
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_onnxruntime_runs_a_linear_layer_as_one_kernel(
    tmp_path: Path, shape: tuple[int, ...], per_channel: bool, with_bias: bool
) -> None:
    gm, x = linear(per_channel, with_bias), inputs_of(shape)
    report = export_onnx(gm, tmp_path / "model.onnx", x)
    assert report.dynamic_nodes == 1
    assert "1 quantized on the fly" in str(report)
    assert kernels(report.path) == {"DynamicQuantizeMatMul": 1}
    # The same integers, scaled in another order.
    np.testing.assert_allclose(run(report.path, x)[0], gm(x).numpy(), rtol=1e-5, atol=1e-6)


def test_float16_is_computed_in_float32_in_the_file_too(tmp_path: Path) -> None:
    gm, x = linear(dtype=torch.float16), inputs_of((2, 5, IN), torch.float16)
    path = export_onnx(gm, tmp_path / "model.onnx", x).path
    assert kernels(path) == {"Cast": 2, "DynamicQuantizeMatMul": 1}
    # The last bit of float16, where the float32 results differ in theirs.
    np.testing.assert_allclose(run(path, x)[0], gm(x).numpy(), rtol=1e-3)


def test_onnxruntime_runs_a_product_of_activations_on_integers(tmp_path: Path) -> None:
    build = Builder()
    gm = build.finish(build.call(DYNAMIC_MATMUL, build.input("a"), build.input("b")))
    a, b = inputs_of((2, 3, 5, 7)), inputs_of((2, 3, 7, 4))
    report = export_onnx(gm, tmp_path / "model.onnx", (a, b))
    assert report.dynamic_nodes == 2
    assert kernels(report.path) == {"DynamicQuantizeLinear": 1, "DynamicQuantizeMatMul": 1}
    np.testing.assert_allclose(run(report.path, a, b)[0], gm(a, b).numpy(), rtol=1e-5, atol=1e-6)


def test_the_weight_is_stored_once_as_int8_under_its_path(tmp_path: Path) -> None:
    build = Builder()
    codes, steps = torch.randint(-127, 128, (IN, IN), dtype=torch.int8), torch.rand(IN) * 0.01
    stored_args = build.read("fc.weight", codes), build.read("fc.weight_scale", steps), None
    once = build.call(DYNAMIC_LINEAR, build.input(), *stored_args)
    gm = build.finish(build.call(DYNAMIC_LINEAR, once, *stored_args))
    path = export_onnx(gm, tmp_path / "model.onnx", inputs_of((2, IN))).path
    tensors = stored(path)
    assert set(tensors) == {"fc.weight", "fc.weight_scale"}
    assert tensors["fc.weight"].data_type == onnx.TensorProto.INT8
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors["fc.weight"]), codes.T)
    names = [node.name for node in onnx.load(path).graph.node]
    assert names[:3] == ["fc/DynamicQuantizeLinear", "fc/MatMulInteger", "fc/Cast"]


def test_a_file_runs_for_any_batch_but_the_samples_share_a_range(tmp_path: Path) -> None:
    gm, x = linear(), inputs_of((4, 5, IN))
    x[0] *= 10
    path = export_onnx(gm, tmp_path / "model.onnx", x[:1]).path
    together, alone = run(path, x)[0], run(path, x[1:2])[0]
    np.testing.assert_allclose(together, gm(x).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, gm(x[1:2]).numpy(), rtol=1e-5, atol=1e-5)
    # The loud sample takes most of the codes: the others keep a tenth of them.
    assert np.abs(together[1:2] - alone).max() > 10 * np.abs(alone - gm(x[1:2]).numpy()).max()


def break_step(model: ir.Model) -> None:
    value = model.graph.initializers["fc.weight_scale"]
    value.const_value = ir.tensor(np.zeros(OUT, np.float32))


def break_zero_point(model: ir.Model) -> None:
    product = next(node for node in model.graph if node.op_type == "MatMulInteger")
    zero = ir.Value(name="zero", const_value=ir.tensor(np.array(0, np.uint8)))
    model.graph.register_initializer(zero)
    product.replace_input_with(2, zero)


def break_columns(model: ir.Model) -> None:
    value = model.graph.initializers["fc.weight_scale"]
    value.const_value = ir.tensor(np.ones(OUT - 1, np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_step, "a step that is not positive"),
        (break_zero_point, "left codes and their zero point from two places"),
        (break_columns, "7 steps for 8 columns"),
    ],
)
def test_a_damaged_product_is_refused_by_name(tmp_path: Path, damage: object, message: str) -> None:
    path = export_onnx(linear(), tmp_path / "model.onnx", inputs_of((2, IN)), ExportOptions(check=False)).path
    model = ir.load(path)
    check_qdq(model, FileRules())
    damage(model)
    with pytest.raises(ExportError, match=message) as caught:
        check_qdq(model, FileRules())
    assert "'fc/MatMulInteger'" in str(caught.value)


def test_a_target_may_refuse_the_weights_dtype(tmp_path: Path) -> None:
    options = ExportOptions(rules=FileRules(weight_dtypes=("uint8",)))
    with pytest.raises(ExportError, match="stores int8 codes; the target takes uint8"):
        export_onnx(linear(), tmp_path / "model.onnx", inputs_of((2, IN)), options)
