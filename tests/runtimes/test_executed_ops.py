"""What real runtimes make of a file: operations, their dtypes, and what was fused into them."""

from pathlib import Path

import pytest
import torch
from support.runtime_files import RuntimeFiles
from torch import nn

import fxq
from fxq.errors import InputError, RuntimeRefusedError
from fxq.runtimes import ExecutedOp, OpTensor, count_kinds, get_runtime, traffic_mb
from fxq.runtimes.tensorrt_rtx import read_kernels, weighted_ops

SHAPES = ((1, 1, 8, 8), (4, 1, 8, 8), (16, 1, 8, 8))
# One kernel of the builder's log, shortened; between two lines of other things.
LOG = """\
Engine layers:
Name: fc/Gemm_myl0_5, LayerType: gemm, Inputs: [ { Name: q8_myl0, Dimensions: [4,8], Strides: [8,1], Datatype: Int8, \
Format: (Linear) Row major linear format }, { Name: skip, Dimensions: [4,10], Strides: [10,1], Datatype: Half, \
Format: (Linear) Row major linear format }], Constants: [ { Name: dconst, Dimensions: [8,10], Datatype: Int8, \
Format: (Transposed) Transposed format }], Outputs: [ { Name: y, Dimensions: [4,10], Strides: [10,1], \
Datatype: Float, Format: (Linear) Row major linear format }], TacticName: stub, StreamId: 0, \
Metadata: [ONNX Layer: fc/Gemm][ONNX Layer: add/Add]
Engine generation completed.
"""


def test_onnxruntime_tells_its_kernels_with_the_dtypes_of_activations(files: RuntimeFiles) -> None:
    ops = get_runtime("onnxruntime").executed_ops(files.static["onnxruntime"])
    found = count_kinds(ops)
    assert {kind: found[kind] for kind in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Add")} == {
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "QGemm": 1,
        "Conv": 0,
        "Add": 0,
    }
    by_name = {op.name.partition("_token")[0]: op for op in ops}
    # The add reads two activations and its six scales and zero points; behind a change of layout no type is stored.
    assert by_name["add/Add"].input_dtypes == ("uint8", "uint8")
    assert by_name["add/Add"].output_dtypes == ("uint8",)
    assert by_name["conv2/Conv"].input_dtypes == by_name["conv2/Conv"].output_dtypes == ("uint8",)
    first, last = ops[0], ops[-1]
    assert (first.kind, first.inputs) == ("QuantizeLinear", (OpTensor("x", "float32", (4, 1, 8, 8)),))
    assert (last.kind, last.input_dtypes, last.output_dtypes) == ("QGemm", ("uint8",), ("float32",))


def test_a_gemm_that_gives_floats_is_told_from_one_that_gives_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).eval()
    converted = fxq.quantize(model, [torch.randn(2, 5, 8)], "onnxruntime", progress=False)
    fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False)
    ops = get_runtime("onnxruntime").executed_ops(tmp_path / "model.onnx")
    # ONNX Runtime puts it between reshapes to matrices, and stores no type there.
    assert [op.output_dtypes for op in ops if op.kind == "QGemm"] == [("float32",), ("float32",)]


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as written"])
def test_every_dtype_onnxruntime_executes_is_known(files: RuntimeFiles, optimize: bool) -> None:
    runtime = get_runtime("onnxruntime", optimize=optimize)
    for path in (*files.static.values(), *files.dynamic.values()):
        for op in runtime.executed_ops(path):
            assert op.outputs
            assert "" not in op.input_dtypes + op.output_dtypes


def test_without_optimization_onnxruntime_executes_the_operators_of_the_file(files: RuntimeFiles) -> None:
    found = count_kinds(get_runtime("onnxruntime", optimize=False).executed_ops(files.static["onnxruntime"]))
    assert (found["Conv"], found["Add"], found["Gemm"], found["QLinearConv"]) == (2, 1, 1, 0)


def test_reading_the_operations_leaves_nothing_beside_the_file(files: RuntimeFiles) -> None:
    folder = files.static["onnxruntime"].parent
    before = sorted(folder.iterdir())
    for name in ("onnxruntime", "openvino", "tensorrt_rtx"):
        get_runtime(name).executed_ops(files.static[name])
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("batch", ["static", "dynamic"])
def test_openvino_convolves_unsigned_bytes_and_tells_what_it_fused(files: RuntimeFiles, batch: str) -> None:
    ops = get_runtime("openvino", threads=1).executed_ops(getattr(files, batch)["openvino"])
    convolutions = [op for op in ops if op.kind == "Convolution"]
    # Weights, scales and what OpenVINO computes of them when it loads the file are no activations.
    assert [op.input_dtypes for op in convolutions] == [("uint8",), ("uint8",)]
    assert "conv1/Conv" in convolutions[0].fused
    assert "conv2_input_quantizer/QuantizeLinear" in convolutions[0].fused
    assert convolutions[0].inputs[0].shape == (4 if batch == "static" else -1, 1, 8, 8)
    assert not set(count_kinds(ops)) & {"Const", "Input", "Output"}
    assert all(op.inputs for op in ops)


def test_tensorrt_rtx_tells_the_kernels_of_its_plan(files: RuntimeFiles) -> None:
    ops = get_runtime("tensorrt_rtx").executed_ops(files.static["tensorrt_rtx"])
    weighted = weighted_ops(ops)
    assert count_kinds(weighted) == {"correlation": 2, "gemm": 1}
    assert {dtype for op in weighted for dtype in op.input_dtypes} == {"int8"}
    assert [op.fused[0] for op in weighted] == ["conv1/Conv", "conv2/Conv", "fc/Gemm"]
    assert len(ops) > len(weighted)


def test_a_line_of_the_builders_log_is_a_kernel_without_its_constants() -> None:
    (kernel,) = read_kernels(LOG)
    assert kernel == ExecutedOp(
        name="fc/Gemm_myl0_5",
        kind="gemm",
        inputs=(OpTensor("q8_myl0", "int8", (4, 8)), OpTensor("skip", "float16", (4, 10))),
        outputs=(OpTensor("y", "float32", (4, 10)),),
        fused=("fc/Gemm", "add/Add"),
    )
    assert traffic_mb([kernel, kernel]) == pytest.approx(2 * (32 + 2 * 40 + 4 * 40) / 1e6)


def test_names_of_the_file_may_hold_blanks_brackets_and_braces() -> None:
    odd = "a b, Dimensions: [{c}][d]"
    log = LOG.replace("fc/Gemm", odd).replace("q8_myl0", odd).replace("][ONNX", "]\x1f[ONNX")
    (kernel,), (plain,) = read_kernels(log), read_kernels(LOG)
    assert kernel.fused == (odd, "add/Add")
    assert [tensor.name for tensor in kernel.inputs] == [odd, "skip"]
    assert (kernel.input_dtypes, kernel.outputs) == (plain.input_dtypes, plain.outputs)


def test_kernels_that_multiply_are_weighted_whatever_they_are_called() -> None:
    kinds = ("correlation", "kgen", "deconv", "gemm", "runtime_fusion")
    ops = [ExecutedOp(kind, kind, (), ()) for kind in kinds]
    assert [op.kind for op in weighted_ops(ops)] == ["correlation", "deconv", "gemm", "runtime_fusion"]


def test_open_dimensions_need_the_option_profile(files: RuntimeFiles) -> None:
    path = files.dynamic["tensorrt_rtx"]
    with pytest.raises(InputError, match=r"input 'x' has open dimensions, \(-1, 1, 8, 8\).*option profile=.*dynamic_b"):
        get_runtime("tensorrt_rtx").executed_ops(path)
    ops = get_runtime("tensorrt_rtx", profile={"x": SHAPES}).executed_ops(path)
    assert weighted_ops(ops)[0].inputs[0].shape[0] == -1
    with pytest.raises(InputError, match=r"cannot be counted: shape \(-1, .*dynamic_batch=False"):
        traffic_mb(ops)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"x": SHAPES, "image": SHAPES}, "profile: the file has no input 'image'; its inputs: x"),
        ({"x": SHAPES[:2]}, "not a smallest, usual and largest shape of input 'x'"),
        ({"x": SHAPES[::-1]}, "not a smallest, usual and largest shape of input 'x'"),
        ({"x": [(1, 1, 8)] * 3}, "not a smallest, usual and largest shape of input 'x'"),
        ({"x": ((1, 1, 8, 8), (4, 1, 8, 8), (8, 1, 8, 16))}, "not a smallest, usual and largest shape of input 'x'"),
    ],
    ids=["unknown input", "two shapes", "falling", "rank", "closed dimension"],
)
def test_a_profile_that_does_not_fit_is_refused(files: RuntimeFiles, profile: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_runtime("tensorrt_rtx", profile=profile).executed_ops(files.dynamic["tensorrt_rtx"])


def test_tensorrt_rtx_refuses_zero_points_in_its_own_words(files: RuntimeFiles) -> None:
    with pytest.raises(RuntimeRefusedError, match="Non-zero zero point is not supported"):
        get_runtime("tensorrt_rtx").executed_ops(files.static["onnxruntime"])
