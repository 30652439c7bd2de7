"""Files that other tools wrote, see foreign_files/README.md: what is told of each for each runtime is true of it.

What is expected is worked out from what the tool placed where and from what the runtime's own plan executes.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_files import write
from onnx import numpy_helper

import fxq
from fxq.verification import VerifyReport
from fxq.verification.finding import ERROR, NOTE, WARNING
from fxq.verification.plans import INTEGERS

FOLDER = Path(write.__file__).parent
TARGETS = ("tensorrt", "onnxruntime", "openvino")
Reports = Callable[[str, str], VerifyReport]
Places = dict[str, set[str]]

RELUS = {"relu", "res.relu1", "inv.se.relu"}
CONVS = {
    *("stem.0", "res.conv1.0", "res.conv2.0", "res.down.0"),
    *("inv.expand.0", "inv.depthwise.0", "inv.se.fc1", "inv.se.fc2", "inv.project.0"),
    *("mix.left.0", "mix.right.0", "last.0"),
}
WITHOUT_BATCH_NORM = {"inv.se.fc1", "inv.se.fc2"}
LINEARS = {"embed", "attention.qkv", "attention.proj", "mlp.0", "mlp.2", "head"}
# As they have three channels or more, all of them; see the model in write.py.
ADDS = {"res", "inv"}
FOR_PRODUCTS = "store its bias as int32 in steps of input scale x weight scale, or quantize its output"


@pytest.fixture(scope="module")
def reports() -> Reports:
    return cache(lambda name, target: fxq.verify(FOLDER / f"{name}.onnx", target))


def places(report: VerifyReport, severity: str) -> Places:
    """Return the paths of the modules that are told, by rule."""
    found: Places = {}
    for finding in report:
        if finding.severity == severity:
            found.setdefault(finding.rule, set()).add(finding.path)
    return found


def fixes(report: VerifyReport, rule: str) -> set[str]:
    return {finding.fix for finding in report if finding.rule == rule}


def nodes(report: VerifyReport, rule: str) -> set[str]:
    return {finding.node for finding in report if finding.rule == rule}


def reading_integers(report: VerifyReport, kind: str) -> int:
    return sum(op.kind == kind and op.inputs[0].dtype in INTEGERS for op in report.executed)


class Codes:
    """What the quantizers of a file are, read with nothing of fxq."""

    def __init__(self, name: str) -> None:
        graph = onnx.load(FOLDER / f"{name}.onnx").graph
        self.nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        constants = (node for node in graph.node if node.op_type == "Constant")
        self.stored |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in constants}
        same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        self.stored |= {name: self.stored[source] for name, source in same.items() if source in self.stored}

    def of_activations(self, is_told: Callable[[np.ndarray], bool]) -> set[str]:
        """Return the QuantizeLinear nodes of activations whose zero point is such."""
        quantizers = [node for node in self.nodes if node.op_type == "QuantizeLinear"]
        return {node.name for node in quantizers if node.input[0] not in self.stored and self._is(node, is_told)}

    def of_stored(self, dtype: type) -> set[str]:
        """Return the DequantizeLinear nodes of stored codes of this dtype."""
        return {
            node.name
            for node in self.nodes
            if node.op_type == "DequantizeLinear" and getattr(self.stored.get(node.input[0]), "dtype", None) == dtype
        }

    def _is(self, node: onnx.NodeProto, is_told: Callable[[np.ndarray], bool]) -> bool:
        return is_told(self.stored[node.input[2]])


def is_uint8(zero_point: np.ndarray) -> bool:
    return zero_point.dtype == np.uint8


def is_affine(zero_point: np.ndarray) -> bool:
    return bool(np.any(zero_point != 0))


def test_the_folder_has_what_its_script_writes_and_its_readme_tells_of() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(write.FILES)
    assert all(f"`{name}.onnx`" in readme for name in write.FILES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", write.FILES)
def test_every_finding_is_whole_and_names_a_module(reports: Reports, name: str, target: str) -> None:
    report = reports(name, target)
    assert all(finding.what and finding.cost and finding.fix for finding in report)
    kind = write.Transformer if "transformer" in name else write.ConvNet
    modules = {path for path, _ in kind().named_modules()}
    outside = {finding.path for finding in report} - modules
    # Of the model itself, which is no module with a path.
    assert outside <= {"/Add", "/Add_1", "/ReduceMean"}
    pairs = [(finding.rule, finding.node) for finding in report]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    ("name", "target", "notes"),
    [
        ("onnxruntime_convnet", "onnxruntime", {"float-island": {"inv.act1", "inv.act2", "inv.se.gate"}}),
        (
            "onnxruntime_transformer",
            "onnxruntime",
            {"float-island": {"norm1", "norm2", "norm", "mlp.1", "/ReduceMean"}},
        ),
        # NNCF leaves squeeze-and-excite blocks in float.
        ("nncf_convnet", "openvino", {"float-layer": {"inv.se.fc1", "inv.se.fc2"}}),
        ("nncf_torch_convnet", "openvino", {"float-layer": {"inv.se.fc1", "inv.se.fc2"}}),
        ("nncf_transformer", "openvino", {}),
        ("modelopt_transformer", "tensorrt", {"float-layer": {"head"}}),
        ("modelopt_torch_convnet", "openvino", {}),
        ("pytorch_quantization_transformer", "tensorrt", {}),
        ("pytorch_quantization_transformer", "openvino", {}),
        ("pytorch_quantization_convnet", "openvino", {}),
    ],
)
def test_files_that_run_as_they_are_meant_to_break_no_rule(
    reports: Reports, name: str, target: str, notes: Places
) -> None:
    report = reports(name, target)
    assert report.ok, report
    assert places(report, NOTE) == notes
    assert report.executed


def test_plans_bear_out_that_nothing_is_broken(reports: Reports) -> None:
    assert reports("onnxruntime_convnet", "onnxruntime").kinds["QLinearConv"] == len(CONVS)
    # Two of twelve are float: the squeeze-and-excite block.
    assert reading_integers(reports("nncf_convnet", "openvino"), "Convolution") == 10
    assert reading_integers(reports("nncf_torch_convnet", "openvino"), "Convolution") == 10
    for name in ("modelopt_torch_convnet", "pytorch_quantization_convnet"):
        assert reading_integers(reports(name, "openvino"), "Convolution") == len(CONVS)
    for name in ("nncf_transformer", "pytorch_quantization_transformer"):
        assert reading_integers(reports(name, "openvino"), "FullyConnected") == len(LINEARS)
    assert reading_integers(reports("pytorch_quantization_transformer", "tensorrt"), "gemm") == len(LINEARS)


@pytest.mark.parametrize("name", ["onnxruntime_convnet", "onnxruntime_transformer"])
def test_tensorrt_refuses_what_onnxruntime_writes_by_default(reports: Reports, name: str) -> None:
    report, codes = reports(name, "tensorrt"), Codes(name)
    assert nodes(report, "bias-type") == codes.of_stored(np.int32)
    assert nodes(report, "activation-type") == codes.of_activations(is_uint8)
    assert nodes(report, "zero-point") == codes.of_activations(is_affine)
    # Stored numbers that are no weights: of gelu, and the scale of attention.
    assert nodes(report, "weight-type") == codes.of_stored(np.uint8)
    (refused,) = [finding for finding in report if finding.rule == "refused"]
    assert refused.node in nodes(report, "bias-type") | nodes(report, "weight-type")
    assert report.executed == ()


def test_quantizers_on_all_outputs_are_told_where_they_split_what_fuses(reports: Reports) -> None:
    """quantize_static quantizes what each operator writes, in hard swish and SiLU too."""
    inside = {"inv.expand.0", "inv.depthwise.0", "last.0"}
    both: Places = {"quantized-output": {"head"}, "equal-ranges": {"mix"}, "quantizer-in-activation": inside}
    before_relu = {"stem.0", "res.conv1.0", "res", "inv.se.fc1", "inv.se.fc2", "mix.left.0"}
    name = "onnxruntime_for_tensorrt_convnet"
    assert places(reports(name, "openvino"), WARNING) == {**both, "quantizer-before-activation": before_relu}
    tensorrt = {**both, "quantizer-before-activation": before_relu, "quantizer-before-add": ADDS}
    assert places(reports(name, "tensorrt"), WARNING) == tensorrt
    assert not places(reports(name, "tensorrt"), ERROR)
    # Of uint8 codes it leaves a ReLU to the quantizer behind it.
    assert places(reports("onnxruntime_convnet", "openvino"), WARNING) == {
        **both,
        "quantizer-before-activation": {"inv.se.fc2"},
    }
    split = next(one for one in reports(name, "openvino") if one.rule == "quantizer-in-activation")
    assert split.node == "/inv/expand/expand.0/Conv_output_0_QuantizeLinear"
    assert "'/inv/expand/expand.0/Conv' and '/inv/act1/HardSwish_output_0'" in split.fix
    kernels = [op for op in reports(name, "openvino").executed if "/act/Sigmoid" in op.fused]
    assert [op.kind for op in kernels] == ["Subgraph"]  # not in the convolution before it


def test_nncf_scales_of_depthwise_activations_are_for_openvino_alone(reports: Reports) -> None:
    for name in ("nncf_convnet", "nncf_torch_convnet"):
        assert not nodes(reports(name, "openvino"), "activation-axis")
    for target in ("tensorrt", "onnxruntime"):
        report = reports("nncf_convnet", target)
        assert nodes(report, "activation-axis") == {"QuantizeLinear_hardswish_1"}
        (depthwise,) = [one for one in report if one.rule == "float-kernel" and one.path == "inv.depthwise.1"]
        assert depthwise.node == "node_Conv_164"


def test_tensorrt_takes_nncfs_codes_for_int8(reports: Reports) -> None:
    """It reads uint8 codes with zero point 0 as int8: the upper half of the range is cut off."""
    report = reports("nncf_convnet", "tensorrt")
    assert nodes(report, "activation-type") == Codes("nncf_convnet").of_activations(is_uint8)
    assert places(report, ERROR).keys() == {"activation-type"}
    assert places(report, WARNING) == {
        "activation-axis": {"inv.act1"},
        "quantizer-before-add": ADDS,
        "float-kernel": {"inv.depthwise.1"},
    }
    assert not {"uint8"} & {dtype for op in report.executed for dtype in op.input_dtypes}


def test_tensorrt_refuses_nncfs_zero_points(reports: Reports) -> None:
    report = reports("nncf_transformer", "tensorrt")
    assert nodes(report, "zero-point") == Codes("nncf_transformer").of_activations(is_affine)
    assert places(report, ERROR).keys() == {"zero-point", "refused"}
    assert next(one.path for one in report if one.rule == "refused") == "attention.proj"


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_an_operator_of_openvino_is_named_with_its_module(reports: Reports, target: str) -> None:
    report = reports("nncf_torch_convnet", target)
    (refused,) = [finding for finding in report if finding.rule == "refused"]
    assert (refused.node, refused.path) == ("/mix/relu/mix/relu/relu/0__0.0/FakeQuantize", "mix.relu")
    # What it quantizes is quantized all the same.
    assert "half-quantized" not in {finding.rule for finding in report}


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_modelopts_hard_swish_and_batch_of_one_are_told(reports: Reports, target: str) -> None:
    """It quantizes what a hard swish reads, and no product of one row, in front of which it leaves a pair."""
    assert places(reports("modelopt_convnet", target), WARNING) == {
        "half-quantized": {"head"},
        "quantizer-before-activation": {"inv.expand.0", "inv.depthwise.0"},
    }
    assert reading_integers(reports("modelopt_convnet", "openvino"), "Convolution") == len(CONVS)
    assert reading_integers(reports("modelopt_convnet", "tensorrt"), "correlation") == len(CONVS)


@pytest.mark.parametrize("name", ["modelopt_torch_convnet", "pytorch_quantization_convnet"])
def test_residuals_that_tools_for_torch_leave_in_float_are_told(reports: Reports, name: str) -> None:
    report = reports(name, "tensorrt")
    assert places(report, WARNING) == {"residual-quantizer": ADDS}
    assert len(report) == 2
    assert reading_integers(report, "correlation") == len(CONVS)


def test_onnxruntime_fuses_nothing_around_float16(reports: Reports) -> None:
    report = reports("modelopt_convnet", "onnxruntime")
    assert not [op for op in report.executed if op.kind.startswith("QLinear")]
    assert places(report, WARNING)["float-kernel"] == {*CONVS, "inv.se", "mean"}
    (fix,) = fixes(report, "float-kernel")
    assert "high_precision_dtype='fp32' in ModelOpt" in fix


@pytest.mark.parametrize("name", ["modelopt_torch_convnet", "pytorch_quantization_convnet"])
def test_onnxruntime_wants_batch_norms_folded(reports: Reports, name: str) -> None:
    report = reports(name, "onnxruntime")
    found = places(report, WARNING)
    assert found["float-kernel"] == {*CONVS, "head"}
    unfolded = {one.path for one in report if one.rule == "output-quantizer" and one.fix.startswith("fold its")}
    assert unfolded == CONVS - WITHOUT_BATCH_NORM
    assert found["output-quantizer"] == CONVS - {"inv.se.fc1"}
    assert found["activation-clamp"] == {"inv.se.relu"}
    # It makes uint8 of int8 codes itself, but for those that two operations share.
    shared = {"res.conv1.0", "res.down.0"} if name == "pytorch_quantization_convnet" else set()
    assert found.get("activation-codes", set()) == shared


@pytest.mark.parametrize(
    ("name", "in_float"),
    [
        ("pytorch_quantization_transformer", LINEARS),
        ("nncf_transformer", LINEARS),
        # Behind the others it quantizes.
        ("modelopt_transformer", {"attention.qkv", "mlp.0"}),
    ],
)
def test_onnxruntime_wants_an_integer_bias_or_a_quantized_output_of_products(
    reports: Reports, name: str, in_float: set[str]
) -> None:
    """Their int8 codes keep none in float: with uint8 it runs as many of them in integers."""
    report = reports(name, "onnxruntime")
    assert places(report, WARNING)["float-kernel"] == in_float
    assert fixes(report, "float-kernel") == {FOR_PRODUCTS}
    assert "activation-codes" not in places(report, WARNING)
    assert report.kinds["Gemm"] == len(in_float) + (name == "modelopt_transformer")


def test_onnxruntime_runs_what_nncf_quantizes_around_convolutions(reports: Reports) -> None:
    report = reports("nncf_convnet", "onnxruntime")
    in_integers = {"stem.1", "res.conv1.1", "res.conv2.1", "res.down.1", "inv.project.1", "mix.right.1"}
    assert report.kinds["QLinearConv"] == len(in_integers)
    folded = {f"{path[:-1]}1" for path in CONVS - WITHOUT_BATCH_NORM}  # each convolution is told by its batch norm
    in_float = {*(folded - in_integers), "inv.se", "inv", "head"}
    assert places(report, WARNING)["float-kernel"] == in_float
    # It has quantized the bias of those in integers.
    assert not places(report, NOTE)["bias-type"] & in_integers
    assert places(report, NOTE)["float-island"] == {"inv.se.pool", "mix.pool", "mean"}


def test_onnxruntime_adds_what_modelopt_half_quantizes_in_float(reports: Reports) -> None:
    assert places(reports("modelopt_transformer", "onnxruntime"), WARNING)["mixed-operands"] == {"/Add_1"}
    # OpenVINO reads both in one kernel.
    assert places(reports("modelopt_transformer", "openvino"), WARNING) == {"lone-quantizer": {"norm2"}}


def test_openvino_multiplies_no_codes_with_zero_points(reports: Reports) -> None:
    report = reports("onnxruntime_transformer", "openvino")
    assert nodes(report, "float-kernel") == {"/attention/MatMul", "/attention/MatMul_1"}
    lone = nodes(report, "lone-quantizer")
    operands = {f"/attention/{part}_output_0_QuantizeLinear" for part in ("Squeeze", "Transpose_1", "Squeeze_2")}
    assert operands <= lone
    assert lone - operands == {
        "/attention/Mul_output_0_QuantizeLinear",
        "/attention/Softmax_output_0_QuantizeLinear",
        "/Add_1_output_0_QuantizeLinear",  # read by a layer norm alone
    }
    assert reading_integers(report, "FullyConnected") == len(LINEARS)


def test_no_file_tells_of_the_machine_that_wrote_it() -> None:
    for path in FOLDER.glob("*.onnx"):
        texts = re.findall(rb"[\x20-\x7e]{4,}", path.read_bytes())
        found = [text for text in texts if re.search(rb"/(home|root|tmp|usr|work)/|[A-Z]:\\|\.py\b", text)]
        assert found == []
