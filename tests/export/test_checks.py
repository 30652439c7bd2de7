"""What the checks of an export refuse, and what they let pass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import timm
import torch
from hand_built import Builder
from lowered_models import lower, lowered_residual
from torch import Tensor, fx, nn
from torch.nn import functional

import fxq
from fxq.compare.outputs import output_steps
from fxq.compare.parity import OutputParity
from fxq.errors import ExportError, RuntimeRefusedError
from fxq.export import ExportOptions, export_onnx
from fxq.export.parity import MAX_MEAN_LSB, Reference, check_parity
from fxq.export.qdq_rules import check_qdq
from fxq.export.written_file import WrittenFile
from fxq.quant import DEQUANTIZE, QUANTIZE
from fxq.runtimes.onnxruntime import OnnxRuntime
from fxq.targets import OPENVINO, TENSORRT, FileRules

STRICT = TENSORRT.file


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gm, x = lowered_residual()
    path = tmp_path_factory.mktemp("checks") / "model.onnx"
    export_onnx(gm, path, x, ExportOptions(rules=STRICT))
    return path


def node(model: ir.Model, name: str) -> ir.Node:
    return next(found for found in model.graph if found.name == name)


def store(model: ir.Model, name: str, value: np.ndarray) -> None:
    model.graph.initializers[name].const_value = ir.tensor(value)
    model.graph.initializers[name].dtype = ir.DataType.from_numpy(value.dtype)
    model.graph.initializers[name].shape = ir.Shape(value.shape)


def break_zero_point(model: ir.Model) -> None:
    store(model, "stem.0_input_quantizer.zero_point", np.array(3, np.int8))


def break_dtype(model: ir.Model) -> None:
    store(model, "stem.0_input_quantizer.zero_point", np.array(0, np.uint8))


def break_scale(model: ir.Model) -> None:
    store(model, "head.2_weight_quantizer.scale", np.zeros(10, np.float32))


def drop_zero_point(model: ir.Model) -> None:
    node(model, "stem.0_input_quantizer/QuantizeLinear").resize_inputs(2)


def break_axis(model: ir.Model) -> None:
    node(model, "stem.0.weight/DequantizeLinear").attributes["axis"] = ir.AttrInt64("axis", 1)


def drop_axis(model: ir.Model) -> None:
    del node(model, "stem.0.weight/DequantizeLinear").attributes["axis"]


def read_codes(model: ir.Model) -> None:
    codes = node(model, "block.0_input_quantizer/QuantizeLinear").outputs[0]
    node(model, "relu/Relu" if any(n.name == "relu/Relu" for n in model.graph) else "add/Add").replace_input_with(
        0, codes
    )


def dequantize_a_float(model: ir.Model) -> None:
    dequantize = node(model, "block.0_input_quantizer/DequantizeLinear")
    dequantize.replace_input_with(0, node(model, "stem.2/Relu").outputs[0])


def mix_scales(model: ir.Model) -> None:
    dequantize = node(model, "block.0_input_quantizer/DequantizeLinear")
    dequantize.replace_input_with(1, model.graph.initializers["stem.0_input_quantizer.scale"])


def compute_scale(model: ir.Model) -> None:
    quantize = node(model, "block.0_input_quantizer/QuantizeLinear")
    quantize.replace_input_with(1, node(model, "head.1/Reshape").outputs[0])


def quantize_output(model: ir.Model) -> None:
    model.graph.outputs[0] = node(model, "head.2_input_quantizer/DequantizeLinear").outputs[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_zero_point, "zero point that is not 0"),
        (break_dtype, "makes uint8 codes"),
        (break_scale, "not positive"),
        (drop_zero_point, "has no zero point"),
        (break_axis, "Conv 'stem.0/Conv' needs axis 0"),
        (drop_axis, "one scale per channel"),
        (read_codes, "only DequantizeLinear may read codes"),
        (dequantize_a_float, "reads neither"),
        (mix_scales, "another scale"),
        (compute_scale, "scale that is computed"),
        (quantize_output, "quantized graph output"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_rule_is_named_with_its_node(
    good_file: Path, damage: Callable[[ir.Model], None], message: str
) -> None:
    model = ir.load(good_file)
    damage(model)
    with pytest.raises(ExportError, match=message) as caught:
        check_qdq(model, STRICT)
    assert "Linear '" in str(caught.value)


def test_rules_that_the_target_does_not_have_are_not_applied(good_file: Path) -> None:
    model = ir.load(good_file)
    store(model, "stem.0_input_quantizer.zero_point", np.array(3, np.int8))
    quantize_output(model)
    check_qdq(model, FileRules())


def folded(shift_c: Tensor) -> Tensor:
    return shift_c.expand(1, -1, 14)  # made a constant, with a quantizer behind it


def stored(shift_c: Tensor) -> Tensor:
    return shift_c  # stored in codes


@pytest.mark.parametrize("given", [folded, stored])
def test_a_stored_summand_is_no_weight(tmp_path: Path, given: Callable[[Tensor], Tensor]) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 8, 3)
            self.shift_c = nn.Parameter(torch.linspace(-1, 3, 8)[None, :, None])

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) + given(self.shift_c))

    torch.manual_seed(0)
    converted = fxq.quantize(Shifted().eval(), torch.randn(8, 4, 16), "openvino", progress=False)
    path = tmp_path / "model.onnx"
    fxq.export_onnx(converted, path)
    model = ir.load(path)
    store(model, "first.weight_zero_point", np.ones(8, np.int8))
    with pytest.raises(ExportError, match=r"'first.weight.*symmetric quantization only"):
        check_qdq(model, OPENVINO.file)


def test_parity_finds_one_wrong_scale_among_all(good_file: Path, tmp_path: Path) -> None:
    gm, x = lowered_residual()
    model = ir.load(good_file)
    scale = model.graph.initializers["block.0_weight_quantizer.scale"]
    store(model, "block.0_weight_quantizer.scale", scale.const_value.numpy() * 2)
    wrong = tmp_path / "wrong.onnx"
    ir.save(model, wrong)
    with pytest.raises(ExportError, match="computes another 'output'"):
        check_parity(WrittenFile(wrong), Reference.run(gm, (x,)))


@pytest.mark.parametrize(("moved", "is_right"), [(3, True), (4, False)])
def test_a_file_may_be_off_by_more_than_one_lsb_at_few_of_its_values(
    good_file: Path, tmp_path: Path, moved: int, is_right: bool
) -> None:
    # On average it is off by next to nothing, and nowhere by more than 2 LSB.
    gm, x = lowered_residual()
    step = output_steps(gm, Reference.run(gm, (x,)).outputs)[0]
    model = onnx.load(good_file)
    shape = gm(x).shape
    offset = np.zeros(shape, np.float32)
    offset.flat[:moved] = 2 * step
    result = model.graph.output[0].name
    last = next(node for node in model.graph.node if result in node.output)
    last.output[0] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(offset, "offset"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "offset"], [result]))
    path = tmp_path / "moved.onnx"
    onnx.save(model, path)
    if is_right:
        assert check_parity(WrittenFile(path), Reference.run(gm, (x,)))[0].beyond == moved / offset.size
        return
    with pytest.raises(ExportError, match=r"% of the values off by more than one, one LSB being .* and 0\.01%"):
        check_parity(WrittenFile(path), Reference.run(gm, (x,)))


def test_three_values_of_any_number_may_be_off_and_the_worst_draw_is_that_of_each_figure() -> None:
    for values in (187, 273, 275, 279):  # sizes of which (3 / n) * n is more than 3
        assert OutputParity("y", 1.0, 2.0, 0.0, 2.0, 3, values).is_rarely_beyond()
        assert not OutputParity("y", 1.0, 2.0, 0.0, 2.0, 4, values).is_rarely_beyond()
    one, other = OutputParity("y", 1.0, 3.0, 0.2, 3.0, 1, 9), OutputParity("y", 1.0, 2.0, 0.1, 2.0, 5, 9)
    assert one.worse(other) == OutputParity("y", 1.0, 3.0, 0.2, 3.0, 5, 9)


@pytest.mark.slow
def test_a_correct_file_of_a_sample_of_untrained_deep_models_passes(tmp_path: Path) -> None:
    # Its seed is chosen so that flipped ties alone move the output by more than the first bound.
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0", pretrained=False).eval()
    x = torch.rand(1, 3, 64, 64)
    report = export_onnx(lower(model, x), tmp_path / "model.onnx", x, ExportOptions(dynamic_batch=False))
    assert report.parity[0].mean_lsb < 3 * MAX_MEAN_LSB


def test_a_file_that_onnxruntime_cannot_run_says_how_to_get_it(tmp_path: Path) -> None:
    gm, x = lowered_residual(dtype=torch.bfloat16)
    with pytest.raises(ExportError, match="check=False"):
        export_onnx(gm, tmp_path / "model.onnx", x)
    report = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(check=False))
    assert report.parity == ()
    assert report.opset == 22


def overflowing() -> tuple[fx.GraphModule, Tensor]:
    """A linear layer that computes right as it is written; fused, its integer bias leaves no room in 32 bits."""
    build = Builder()
    step_x, step_w = torch.tensor(2.0**-6), torch.full((4,), 2.0**-24)

    def dequantized(path: str, codes: Tensor, step: Tensor) -> fx.Node:
        zero = build.read(f"{path}_zero", torch.zeros_like(step, dtype=codes.dtype))
        args = build.read(path, codes), build.read(f"{path}_step", step), zero
        return build.call(DEQUANTIZE, *args, 0 if step.dim() else None, torch.float32)

    def quantized(value: fx.Node, path: str, step: Tensor) -> fx.Node:
        read = build.read(f"{path}_step", step), build.read(f"{path}_zero", torch.tensor(128, dtype=torch.uint8))
        codes = build.call(QUANTIZE, value, *read, None, 0, 255, torch.uint8)
        return build.call(DEQUANTIZE, codes, *read, None, torch.float32)

    x = quantized(build.input(), "x", step_x)
    weight = dequantized("weight", torch.full((4, 8), 127, dtype=torch.int8), step_w)
    bias = dequantized("bias", torch.full((4,), 2**31 - 1000, dtype=torch.int32), step_x * step_w)
    result = quantized(build.call(functional.linear, x, weight, bias), "y", torch.tensor(0.03))
    return build.finish(result), torch.ones(2, 8)


def test_what_onnxruntime_makes_of_the_file_is_checked_too(tmp_path: Path) -> None:
    gm, x = overflowing()
    with pytest.raises(ExportError, match="with its default optimizations, computes another 'output'"):
        export_onnx(gm, tmp_path / "model.onnx", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [1, 3])
def test_the_report_has_the_figures_of_each_run(tmp_path: Path, batch: int) -> None:
    gm, x = lowered_residual()
    report = export_onnx(gm, tmp_path / "model.onnx", x.repeat(batch, 1, 1, 1))
    for parity in (report.parity, report.optimized_parity, report.other_batch_parity):
        assert [output.name for output in parity] == ["output"]
        assert parity[0].is_within()
    assert str(report).count("optimized") == 2
    report = export_onnx(gm, tmp_path / "model.onnx", x, ExportOptions(dynamic_batch=False))
    assert report.optimized_parity
    assert report.other_batch_parity == ()


def test_a_file_that_only_the_optimizations_break_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = OnnxRuntime.load

    def refuse(self: OnnxRuntime, *args: object) -> object:
        if self.optimize:
            raise RuntimeRefusedError("onnxruntime does not run model.onnx: shape mismatch")
        return load(self, *args)

    monkeypatch.setattr(OnnxRuntime, "load", refuse)
    gm, x = lowered_residual()
    with pytest.raises(ExportError, match="with its default optimizations, onnxruntime does not run"):
        export_onnx(gm, tmp_path / "model.onnx", x)
    assert list(tmp_path.iterdir()) == []


def test_what_matmulnbits_rounds_is_no_error_of_the_file(tmp_path: Path) -> None:
    # Many layers, each of which reads activations in 8 bits: more than the first bound, 1 LSB on average.
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    x = torch.randn(2, 64)
    converted = fxq.quantize(nn.Sequential(*layers[:-1]).eval(), recipe="weight_only", example_inputs=x)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert report.parity[0].mean_lsb < 0.1
    assert report.optimized_parity[0].mean_lsb > MAX_MEAN_LSB
