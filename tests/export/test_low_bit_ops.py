"""Weights of few bits, and weights of operators that compute in float: packed, and in the form that runs fastest."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hand_built import Builder, kernels, run, stored
from torch import Tensor, fx

from fxq.errors import ExportError
from fxq.export import ExportOptions, export_onnx
from fxq.quant import DEQUANTIZE, DEQUANTIZE_LOW_BIT, QUANTIZE
from fxq.targets import FileRules

OUT, IN = 24, 64
FAST = ExportOptions(rules=FileRules(fast_weight_only=True))
BLOCKS = {"per channel": None, "blocks of 16": 16, "blocks of 32": 32, "a short last block": 48}


def random_int4(*shape: int) -> Tensor:
    return torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def random_int8(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def random_steps(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.01


def inputs_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def int4_linear(block_size: int | None, with_bias: bool = True, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    build = Builder()
    steps = random_steps(OUT) if block_size is None else random_steps(OUT, -(-IN // block_size))
    stored_args = build.read("fc.weight", random_int4(OUT, IN)), build.read("fc.weight_scale", steps.to(dtype))
    axis = 0 if block_size is None else 1
    weight = build.call(DEQUANTIZE_LOW_BIT, *stored_args, 4, axis, block_size, dtype)
    bias = build.read("fc.bias", torch.linspace(-1, 1, OUT).to(dtype)) if with_bias else None
    return build.finish(build.call(F.linear, build.input(), weight, bias))


def int8_weight(build: Builder, path: str, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
    read = build.read(f"{path}.weight", random_int8(*shape)), build.read(f"{path}.weight_scale", random_steps(shape[0]))
    zero = build.read(f"{path}.weight_zero_point", torch.zeros(shape[0], dtype=torch.int8))
    return build.call(DEQUANTIZE, *read, zero, 0, dtype)


@pytest.mark.parametrize("block_size", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("axis", [0, 1])
def test_each_code_is_multiplied_by_the_step_of_its_channel_or_block(block_size: int | None, axis: int) -> None:
    codes = random_int4(OUT, IN) if axis else random_int4(IN, OUT)
    shape = list(codes.shape)
    shape[axis] = -(-shape[axis] // (block_size or 1))
    steps = random_steps(shape[axis]) if block_size is None else random_steps(*shape)
    expected = np.empty(codes.shape)
    for index, code in np.ndenumerate(codes.numpy()):
        block = index[axis] // (block_size or 1)
        place = [block] if block_size is None else [block if dim == axis else i for dim, i in enumerate(index)]
        expected[index] = int(code) * float(steps[tuple(place)])
    result = DEQUANTIZE_LOW_BIT(codes, steps, 4, axis, block_size, torch.float32)
    # One float32 product each.
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-7)


def test_half_precision_takes_the_step_that_the_file_stores() -> None:
    codes, steps = random_int4(OUT, IN), random_steps(OUT)
    result = DEQUANTIZE_LOW_BIT(codes, steps, 4, 0, None, torch.float16)
    assert result.dtype is torch.float16
    torch.testing.assert_close(result, (codes * steps.half().float()[:, None]).half(), rtol=0, atol=0)


def test_the_operator_keeps_torchs_rules() -> None:
    torch.library.opcheck(DEQUANTIZE_LOW_BIT, (random_int4(OUT, IN), random_steps(OUT, 2), 4, 1, 32, torch.float32))


def test_two_codes_lie_in_a_byte(tmp_path: Path) -> None:
    gm = int4_linear(32)
    report = export_onnx(gm, tmp_path / "model.onnx", inputs_of(2, IN))
    weight = stored(report.path)["fc.weight"]
    assert weight.data_type == onnx.TensorProto.INT4
    assert len(weight.raw_data) == OUT * IN // 2
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight).astype(np.int8), random_int4(OUT, IN))
    assert onnx.numpy_helper.to_array(weight).dtype == ml_dtypes.int4
    assert report.opset == 21
    assert (report.quantize_nodes, report.dequantize_nodes) == (0, 1)


@pytest.mark.parametrize("shape", [(3, IN), (2, 3, IN), (2, 3, 4, IN)], ids=["rank 2", "rank 3", "rank 4"])
@pytest.mark.parametrize("block_size", [None, 32, 64], ids=["per channel", "blocks of 32", "blocks of 64"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_onnxruntime_runs_an_int4_linear_layer_on_its_integers(
    tmp_path: Path, shape: tuple[int, ...], block_size: int | None, with_bias: bool
) -> None:
    gm, x = int4_linear(block_size, with_bias), inputs_of(*shape)
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    ran = kernels(path)
    assert ran["MatMulNBits"] == 1
    assert not set(ran) - {"MatMulNBits", "Reshape"}
    expected = gm(x).numpy()
    # MatMulNBits rounds activations to 8 bits, per block: 1 % of the largest value is three times what it does here.
    np.testing.assert_allclose(run(path, x)[0], expected, atol=0.01 * np.abs(expected).max())


def test_a_block_that_onnxruntime_does_not_fuse_is_dequantized(tmp_path: Path) -> None:
    gm, x = int4_linear(48), inputs_of(2, IN)
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    assert kernels(path)["DequantizeLinear"] == 1
    # Float products, added up in another order.
    np.testing.assert_allclose(run(path, x)[0], gm(x).numpy(), rtol=1e-4, atol=1e-4)


def test_float16_scales_stay_float16(tmp_path: Path) -> None:
    gm, x = int4_linear(32, dtype=torch.float16), inputs_of(2, IN, dtype=torch.float16)
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    assert stored(path)["fc.weight_scale"].data_type == onnx.TensorProto.FLOAT16
    assert kernels(path)["MatMulNBits"] == 1


@pytest.mark.parametrize("shape", [(3, IN), (2, 3, IN)], ids=["rank 2", "rank 3"])
def test_onnxruntime_runs_an_int8_weight_on_its_integers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    build = Builder()
    gm = build.finish(build.call(F.linear, build.input(), int8_weight(build, "fc", OUT, IN), None))
    path = export_onnx(gm, tmp_path / "model.onnx", inputs_of(*shape), FAST).path
    assert kernels(path)["MatMulNBits"] == 1
    weight = stored(path)["fc.weight"]
    assert (weight.data_type, list(weight.dims)) == (onnx.TensorProto.INT8, [IN, OUT])


@pytest.mark.parametrize("layers", [1, 3])
def test_one_weight_of_several_layers_is_stored_once_and_computed_in_float(tmp_path: Path, layers: int) -> None:
    build = Builder()
    read = build.read("fc.weight", random_int4(IN, IN)), build.read("fc.weight_scale", random_steps(IN))
    value = build.input()
    for _ in range(layers):
        value = build.call(F.linear, value, build.call(DEQUANTIZE_LOW_BIT, *read, 4, 0, None, torch.float32), None)
    gm, x = build.finish(value), inputs_of(2, 3, IN)
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    assert set(stored(path)) == {"fc.weight", "fc.weight_scale"}
    ran = kernels(path)
    assert ran["DequantizeLinear"] == 0
    assert ran["MatMulNBits"] == (1 if layers == 1 else 0)


def convolution(quantize_input: bool = False, dtype: torch.dtype = torch.float32) -> tuple[fx.GraphModule, Tensor]:
    build = Builder()
    value = build.input()
    if quantize_input:
        params = (
            build.read("input.scale", torch.tensor(0.02)),
            build.read("input.zero", torch.tensor(0, dtype=torch.int8)),
        )
        codes = build.call(QUANTIZE, value, *params, None, -128, 127, torch.int8)
        value = build.call(DEQUANTIZE, codes, *params, None, torch.float32)
    weight = int8_weight(build, "conv", 8, 3, 3, 3, dtype=dtype)
    bias = build.read("conv.bias", torch.linspace(-1, 1, 8).to(dtype))
    value = build.call(F.conv2d, value, weight, bias)
    return build.finish(value), inputs_of(1, 3, 8, 8, dtype=dtype)


def test_a_convolution_in_float_gets_its_weight_when_the_file_is_loaded(tmp_path: Path) -> None:
    gm, x = convolution()
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    assert [node.name for node in onnx.load(path).graph.node] == ["conv.weight/Cast", "conv.weight/Mul", "conv/Conv"]
    tensors = stored(path)
    assert {name: tensor.data_type for name, tensor in tensors.items()} == {
        "conv.weight": onnx.TensorProto.INT8,
        "conv.weight_scale": onnx.TensorProto.FLOAT,
        "conv.bias": onnx.TensorProto.FLOAT,
    }
    assert list(tensors["conv.weight_scale"].dims) == [8, 1, 1, 1]
    assert not set(kernels(path)) - {"Conv", "ReorderInput", "ReorderOutput"}
    # Float products, added up in another order.
    np.testing.assert_allclose(run(path, x)[0], gm(x).numpy(), rtol=1e-4, atol=1e-4)


def test_a_convolution_of_one_channel_has_one_step_without_dimensions(tmp_path: Path) -> None:
    build = Builder()
    read = build.read("conv.weight", random_int8(1, 1, 3)), build.read("conv.weight_scale", torch.tensor(0.02))
    zero = build.read("conv.weight_zero_point", torch.tensor(0, dtype=torch.int8))
    weight = build.call(DEQUANTIZE, *read, zero, None, torch.float32)
    gm = build.finish(build.call(F.conv1d, build.input(), weight))
    path = export_onnx(gm, tmp_path / "model.onnx", inputs_of(1, 1, 8), FAST).path
    assert list(stored(path)["conv.weight_scale"].dims) == []


def test_a_convolution_in_float16_gets_its_weight_when_the_file_is_loaded_too(tmp_path: Path) -> None:
    gm, x = convolution(dtype=torch.float16)
    path = export_onnx(gm, tmp_path / "model.onnx", x, FAST).path
    assert kernels(path)["Mul"] == 0
    # onnxruntime computes in float32, torch adds up float16: a unit in the last place of values up to 16.
    np.testing.assert_allclose(run(path, x)[0], gm(x).numpy(), atol=0.02)


@pytest.mark.parametrize(
    ("quantize_input", "options"), [(True, FAST), (False, ExportOptions())], ids=["quantized input", "plain"]
)
def test_a_weight_stays_behind_a_dequantize(tmp_path: Path, quantize_input: bool, options: ExportOptions) -> None:
    gm, x = convolution(quantize_input)
    report = export_onnx(gm, tmp_path / "model.onnx", x, options)
    assert report.dequantize_nodes == (2 if quantize_input else 1)
    assert "conv.weight/DequantizeLinear" in [node.name for node in onnx.load(report.path).graph.node]


def test_a_linear_weight_stays_as_pytorch_stores_it_unless_it_is_to_be_fast(tmp_path: Path) -> None:
    path = export_onnx(int4_linear(32), tmp_path / "model.onnx", inputs_of(2, IN)).path
    assert list(stored(path)["fc.weight"].dims) == [OUT, IN]
    (dequantize,) = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    assert {a.name: a.i for a in dequantize.attribute} == {"axis": 1, "block_size": 32}


def test_steps_that_do_not_fit_the_blocks_are_refused(tmp_path: Path) -> None:
    gm = int4_linear(32)
    gm.get_submodule("fc").weight_scale = random_steps(OUT, 4)
    with pytest.raises(ExportError, match=r"'fc.weight/DequantizeLinear' has scales .* blocks of 32 .* need \[24, 2\]"):
        export_onnx(gm, tmp_path / "model.onnx", inputs_of(2, IN))
