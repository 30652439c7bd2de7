"""``fxq.verify``: the rules of the file and the runtime's own word, in one report."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from support.crashing_runtime import Crashing
from support.qdq_files import QdqFile, residual_block
from support.runtime_files import RECIPES, RuntimeFiles

import fxq
from fxq.errors import InputError, OnnxFileError, TargetError
from fxq.verification.finding import ERROR, NOTE, WARNING

IMAGE = (1, 4, 8, 8)


class OneImage(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)}]

    def get_next(self) -> dict | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual block in float, with batch sizes fixed: what other tools start from."""
    file, random = QdqFile(), np.random.default_rng(0)
    for name in ("w1", "w2"):
        file.store(name, random.standard_normal((4, 4, 3, 3)).astype(np.float32))
        file.store(f"{name}.bias", np.ones(4, np.float32))
    y = file.op("Relu", file.conv("x", "conv1", "w1", "w1.bias"), name="relu1")
    y = file.op("Relu", file.op("Add", file.conv(y, "conv2", "w2", "w2.bias"), y, name="add"), name="relu2")
    return file.save(tmp_path_factory.mktemp("float") / "float.onnx", y)


@pytest.mark.parametrize("batch", ["static", "dynamic"])
@pytest.mark.parametrize(("runtime", "target"), RECIPES.items())
def test_what_fxq_writes_breaks_no_rule_of_its_target(
    files: RuntimeFiles, runtime: str, target: str, batch: str
) -> None:
    shapes = {"x": "1x1x8x8"} if batch == "dynamic" and target == "tensorrt" else None
    report = fxq.verify(getattr(files, batch)[runtime], target, shapes)
    assert (report.findings, report.ok) == ((), True)
    assert report.runtime.startswith(f"{runtime} ")
    assert report.executed
    assert (report.traffic_mb is None) == ((batch == "dynamic" and target != "tensorrt") or target == "onnxruntime")
    assert "no rule is broken" in report.table()


def test_a_file_for_another_target_breaks_rules_and_says_so_in_words(files: RuntimeFiles) -> None:
    report = fxq.verify(files.static["onnxruntime"], "tensorrt")
    found = {(finding.severity, finding.rule) for finding in report}
    assert {(ERROR, "zero-point"), (ERROR, "activation-type"), (ERROR, "bias-type"), (ERROR, "refused")} <= found
    assert not report.ok
    refused = next(finding for finding in report if finding.rule == "refused")
    assert "zero point is not supported" in refused.what
    assert "catchCudaError" not in refused.what  # of the GPU that is not there
    first = report.findings[0]
    assert (first.severity, first.path) == (ERROR, "conv1_input_quantizer")
    assert all(finding.fix and finding.cost and finding.what for finding in report)
    assert "recipe='tensorrt'" in report.table()


def test_findings_name_the_module_path(files: RuntimeFiles) -> None:
    report = fxq.verify(files.static["tensorrt_rtx"], "onnxruntime")
    by_rule = {finding.rule: finding for finding in report}
    assert (by_rule["output-quantizer"].node, by_rule["output-quantizer"].path) == ("conv2/Conv", "conv2")
    assert {finding.path for finding in report if finding.rule == "float-kernel"} == {"conv1", "conv2", "fc"}
    assert all(finding.is_broken == (finding.severity != NOTE) for finding in report)


def test_files_of_quantize_static_are_told_what_onnxruntime_leaves_in_float(float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "qdq.onnx"
    quantize_static(float_file, path, OneImage(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)
    assert fxq.verify(path, "onnxruntime").findings == ()
    quantize_static(float_file, path, OneImage(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8)
    report = fxq.verify(path, "onnxruntime")
    float_kernels = {finding.node: finding for finding in report if finding.rule == "float-kernel"}
    assert set(float_kernels) == {"conv1", "conv2", "add"}
    assert "runs as a float Conv" in float_kernels["conv1"].what
    assert "quantize activations to uint8" in float_kernels["conv1"].fix
    assert {finding.node for finding in report if finding.rule == "activation-codes"} == {"conv1", "conv2"}


def test_codes_are_not_blamed_where_the_runtime_computes_with_them(tmp_path: Path) -> None:
    """ONNX Runtime has no fewer kernels for matrix products of int8 than of uint8."""
    file = QdqFile()
    product = file.op("MatMul", file.qdq("x", "a"), file.weight("w", axis=1, shape=(8, 8)), name="product")
    file.save(tmp_path / "model.onnx", file.qdq(product, "b"))
    report = fxq.verify(tmp_path / "model.onnx", "onnxruntime")
    assert report.kinds["QLinearMatMul"] == 1
    assert report.findings == ()


def test_files_of_integer_operators_are_verified_too(float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "qoperator.onnx"
    quantize_static(float_file, path, OneImage(), quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8)
    assert fxq.verify(path, "onnxruntime").ok
    report = fxq.verify(path, "tensorrt")
    refused = {finding.node for finding in report if finding.rule == "operator"}
    assert refused == {node.name for node in onnx.load(path).graph.node if node.op_type.startswith("QLinear")}
    assert "QuantFormat.QDQ" in next(finding.fix for finding in report if finding.rule == "operator")


def test_tensorrt_shows_the_skip_that_travels_as_float(tmp_path: Path) -> None:
    good, bad = (fxq.verify(residual_block(tmp_path / f"{on}.onnx", on_skip=on), "tensorrt") for on in (True, False))
    assert good.ok
    assert [finding.rule for finding in bad][:1] == ["residual-quantizer"]
    assert good.traffic_mb is not None
    assert bad.traffic_mb is not None
    assert good.traffic_mb < bad.traffic_mb


@pytest.mark.parametrize("batch", [1, "batch"], ids=["fixed", "open"])
def test_a_runtime_that_is_not_installed_leaves_the_rules_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    file = QdqFile(shape=(batch, 4, 8, 8))
    file.save(tmp_path / "model.onnx", file.op("Add", file.conv(file.qdq("x", "a"), "conv"), "x", name="add"))
    report = fxq.verify(tmp_path / "model.onnx", "tensorrt")
    assert [(finding.severity, finding.rule) for finding in report] == [
        (WARNING, "residual-quantizer"),
        (NOTE, "runtime"),
    ]
    assert "pip install tensorrt-rtx-cu12-bindings" in report.findings[1].fix
    assert (report.runtime, report.executed, report.traffic_mb) == ("", (), None)


def test_a_runtime_that_crashes_is_reported_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxq.verification.checking.get_runtime", lambda name, **options: Crashing())
    report = fxq.verify(residual_block(tmp_path / "model.onnx", on_skip=False), "tensorrt")
    assert [finding.rule for finding in report] == ["crash", "residual-quantizer"]
    assert "tensorrt_rtx on model.onnx: the process ended by signal SIGSEGV" in report.findings[0].what


def test_a_target_without_a_runtime_is_verified_by_its_rules(tmp_path: Path) -> None:
    target = fxq.Target("mine", (fxq.OpRule("conv", inputs=True, weight=True),))
    report = fxq.verify(residual_block(tmp_path / "model.onnx"), target)
    assert [(finding.severity, finding.rule) for finding in report] == [(NOTE, "runtime")]
    assert report.findings[0].cost
    assert "onnxruntime" in report.findings[0].fix
    unknown = fxq.verify(tmp_path / "model.onnx", replace(target, file=fxq.FileRules(runtime="hers")))
    assert "unknown runtime 'hers'" in unknown.findings[0].what
    assert unknown.findings[0].fix == report.findings[0].fix
    file = tmp_path / "mine.toml"
    file.write_text(target.to_toml())
    assert fxq.verify(tmp_path / "model.onnx", str(file)).target == "mine"
    with pytest.raises(TargetError, match="tensorrt"):
        fxq.verify(tmp_path / "model.onnx", "tensorrrt")


def damaged(path: Path) -> None:
    path.write_bytes(b"\xff" * 32)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def in_float(path: Path) -> None:
    file = QdqFile()
    file.save(path, file.op("Relu", "x", name="relu"))


def in_openvinos_operator(path: Path) -> None:
    file = QdqFile()
    ends = [file.store(f"end{at}", np.array(value, np.float32)) for at, value in enumerate((-1, 1, -1, 1))]
    file.save(path, file.op("FakeQuantize", "x", *ends, name="fake", domain="org.openvinotoolkit", levels=256))
    model = onnx.load(path)
    model.opset_import.add(domain="org.openvinotoolkit", version=1)
    onnx.save(model, path)


def too_old(path: Path) -> None:
    file = QdqFile(opset=9)
    file.save(path, file.op("Relu", file.qdq("x", "a"), name="relu"))


def axis_too_old(path: Path) -> None:
    file = QdqFile(opset=12)
    file.save(path, file.conv(file.qdq("x", "a"), "conv"))


def without_weights(path: Path) -> None:
    residual_block(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def with_cut_weights(path: Path) -> None:
    without_weights(path)
    (path.parent / "weights.bin").write_bytes(b"\0" * 10)


def without_weights_of_a_branch(path: Path) -> None:
    residual_block(path)
    model = onnx.load(path)
    stored = onnx.numpy_helper.from_array(np.ones(4, np.float32), "stored")
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="branch.bin")
    output = onnx.helper.make_tensor_value_info("copy", onnx.TensorProto.FLOAT, (4,))
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["stored"], ["copy"])], "branch", [], [output], [stored]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(onnx.helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))
    onnx.save(model, path)


def invalid(path: Path) -> None:
    file = QdqFile()
    file.save(path, file.op("Relu", file.qdq("nothing", "a"), name="relu"))


def open_sizes(path: Path) -> None:
    file = QdqFile(shape=("batch", 4, 8, 8))
    file.save(path, file.conv(file.qdq("x", "a"), "conv"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (missing, "there is no such file"),
        (damaged, "is not an ONNX file"),
        (empty, "is not an ONNX file, or an empty one"),
        (in_float, "is not quantized: it has no QuantizeLinear"),
        (in_openvinos_operator, "is quantized in OpenVINO's own operator, FakeQuantize.*nncf.strip"),
        (too_old, "has opset 9, and ONNX has QuantizeLinear from opset 10 on"),
        (axis_too_old, "has opset 12, and ONNX has quantization per channel from opset 13 on"),
        (without_weights, "keeps its weights in 'weights.bin', which is not beside it"),
        (without_weights_of_a_branch, "keeps its weights in 'branch.bin', which is not beside it: 'stored' is missing"),
        (with_cut_weights, "weights.bin is too short"),
        (invalid, "is not valid ONNX: .*nothing"),
        (open_sizes, r"input 'x' of model.onnx has open sizes, \(batch, 4, 8, 8\).*--shape x:1x4x8x8"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_verified_is_one_clear_error(tmp_path: Path, write: object, message: str) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(OnnxFileError, match=message):
        fxq.verify(path, "tensorrt")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": "1x4x8x8"}, "model.onnx has no input 'y'; its inputs: x"),
        ({"x": "1x4x8"}, "does not fit input 'x'"),
        ({"x": "1x4x8x9"}, "does not fit input 'x', whose shape in model.onnx is .batch, 4, 8, 8."),
        ({"x": "8x4x8x8/4x4x8x8/2x4x8x8"}, "does not fit input 'x'"),
        ({"x": "1x4x8x8/4x4x8x8"}, "is no shape such as 1x3x224x224"),
        ({"x": "many"}, "is no shape such as 1x3x224x224"),
        ({"x": "0x4x8x8"}, "is no shape such as 1x3x224x224"),
        ("x:1x4x8x8", "shapes is a dict of names of inputs to shapes.*got 'x:1x4x8x8'"),
    ],
    ids=["name", "rank", "fixed size", "falling", "two shapes", "words", "zero", "no dict"],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, shapes: Any, message: str) -> None:
    open_sizes(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=message):
        fxq.verify(tmp_path / "model.onnx", "tensorrt", shapes)


def test_what_is_no_target_is_refused_and_a_path_is_one(tmp_path: Path) -> None:
    residual_block(tmp_path / "model.onnx")
    with pytest.raises(TargetError, match=r"target is a name .*got NoneType"):
        fxq.verify(tmp_path / "model.onnx", None)
    with pytest.raises(TargetError, match=r"cannot read .*mine\.toml"):
        fxq.verify(tmp_path / "model.onnx", tmp_path / "mine.toml")


@pytest.mark.parametrize("given", [(2, 4, 8, 8), "2x4x8x8", "1,4,8,8/2,4,8,8/4,4,8,8", [(1, 4, 8, 8)] * 3])
def test_shapes_are_text_or_sizes(tmp_path: Path, given: object) -> None:
    open_sizes(tmp_path / "model.onnx")
    report = fxq.verify(tmp_path / "model.onnx", "tensorrt", {"x": given})
    assert report.ok
    is_range = isinstance(given, str) and "/" in given
    assert (report.traffic_mb is None) == is_range
