"""refine_ranges leaves scores in float that no 256 codes are enough for, with what computes them and their softmax."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq import Pass, Rewriter, Stage
from fxq.verification.finding import NOTE


class Scored(nn.Module):
    """Shares of 40 classes, at each position; their scores rise and fall together, up to ``size``."""

    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.softmax = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 40, 1), nn.Softmax(1)
        with torch.no_grad():
            self.stem.weight[0] *= 12
            self.head.weight *= 8
            self.head.weight[:, 0] = size / float(self.stem(torch.randn(8, 3, 9, 9))[:, 0].max())

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu()).flatten(2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.scores(x))  # type: ignore[no-any-return]


BATCHES = list(torch.randn(48, 3, 9, 9, generator=torch.Generator().manual_seed(1)).split(8))
OTHERS = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(2))


def calibrated(model: nn.Module, level: str = "fast") -> GraphModule:
    gm = fxq.prepare(model, BATCHES[0], fxq.recipe("onnxruntime").with_accuracy(level))
    fxq.calibrate(gm, BATCHES, progress=False)
    return gm


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


def off(gm: GraphModule) -> set[str]:
    return {
        path for path, module in gm.named_modules() if isinstance(module, fxq.TensorQuantizer) and not module.is_enabled
    }


WHOLE = {"head_output_quantizer", "head._weight_quantizer", "softmax_output_quantizer"}


def test_large_scores_are_float_and_the_file_says_the_same(tmp_path: Path) -> None:
    model = Scored(800).eval()
    gm, plain = calibrated(model), calibrated(model, "plain")
    assert off(gm) == WHOLE
    with torch.no_grad():
        expected, wanted = model(OTHERS), gm(OTHERS)
        assert sqnr(expected, wanted) > sqnr(expected, plain(OTHERS)) + 20
    fxq.export_onnx(fxq.convert(gm), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: OTHERS.numpy()})
    assert np.abs(found - wanted.numpy()).max() < 0.1  # a code of the layer before, in few places
    findings = [one for one in fxq.verify(tmp_path / "model.onnx", target="onnxruntime") if one.path == "head"]
    assert [(one.rule, one.severity) for one in findings] == [("float-layer", NOTE)]


def test_scores_of_usual_size_are_codes() -> None:
    assert off(calibrated(Scored(20).eval())) == set()


def test_what_the_model_returns_as_well_is_no_reason() -> None:
    class Both(Scored):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            scores = self.scores(x)
            return self.softmax(scores), scores

    assert "head_output_quantizer" not in off(calibrated(Both(800).eval()))


def test_it_is_explained_counted_and_undone_by_the_next_calibration() -> None:
    gm = calibrated(Scored(800).eval())
    explanation = fxq.explain(gm)
    assert explanation.coverage.in_float == ("head",)
    assert "softmax errs by" in explanation["head"].reason
    assert [one.role for one in explanation["head"].quantized] == ["input"]  # the codes that the stem writes
    assert not explanation["softmax"].is_quantized
    data = [4 * batch for batch in BATCHES]
    fxq.calibrate(gm, data, progress=False)
    assert off(gm) == WHOLE
    low, high = gm.get_submodule("stem_input_quantizer").range  # type: ignore[misc]
    assert float(high - low) > 20  # of the second data
    fxq.calibrate(gm, [torch.zeros_like(one) + 1e-4 * one for one in BATCHES], progress=False)
    assert off(gm) == set()


def test_what_stays_in_float_is_no_part_of_what_auto_quantize_says_is_quantized() -> None:
    model = Scored(800).eval()
    with torch.no_grad():
        wanted = model(OTHERS)
    found = fxq.auto_quantize(
        model,
        BATCHES,
        lambda tried: -float((tried(OTHERS) - wanted).square().mean()),
        1.0,
        "onnxruntime",
        progress=False,
    )
    stem, head = 16 * 3 * 9, 40 * 16  # multiplications at a position
    assert found.int8_share == pytest.approx(stem / (stem + head), rel=0.01)


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    gm = calibrated(Scored(800).eval())
    fxq.save(gm, tmp_path / "model.fxq")
    loaded = fxq.load(tmp_path / "model.fxq", Scored(800).eval())
    assert off(loaded) == WHOLE
    assert torch.equal(loaded(OTHERS), gm(OTHERS))
    fxq.calibrate(loaded, [1e-4 * one for one in BATCHES], progress=False)
    assert off(loaded) == set()


def test_scores_whose_softmax_is_float_by_a_rule_are_too() -> None:
    recipe = fxq.recipe("onnxruntime").with_accuracy("fast").with_rules(("softmax", None))
    gm = fxq.prepare(Scored(800).eval(), BATCHES[0], recipe)
    fxq.calibrate(gm, BATCHES, progress=False)
    assert off(gm) == WHOLE - {"softmax_output_quantizer"}


def test_a_quantizer_of_the_users_own_stays_on() -> None:
    class ByHand(Scored):
        def __init__(self) -> None:
            super().__init__(800)
            self.by_hand = fxq.TensorQuantizer(fxq.QuantDescriptor(unsigned=True, symmetric=False))

        def scores(self, x: Tensor) -> Tensor:
            return self.by_hand(super().scores(x))  # type: ignore[no-any-return]

    gm = calibrated(ByHand().eval())
    assert gm.get_submodule("by_hand").is_enabled


def test_a_quantizer_that_the_user_switched_off_stays_so_in_the_next_calibration() -> None:
    gm = fxq.prepare(Scored(800).eval(), BATCHES[0], fxq.recipe("onnxruntime").with_accuracy("fast"))
    gm.get_submodule("head").weight_quantizer.disable()
    for _ in range(2):
        fxq.calibrate(gm, BATCHES, progress=False)
        assert off(gm) == WHOLE
    fxq.calibrate(gm, [1e-4 * one for one in BATCHES], progress=False)
    assert off(gm) == {"head._weight_quantizer"}


class LeavesInFloat(Pass):
    """Leaves what is called ``node`` in float."""

    name = "leaves_in_float"
    stage = Stage.CALIBRATED
    tolerance = fxq.ANY
    improves = True
    node = "stem"

    def run(self, rw: Rewriter) -> None:
        (node,) = rw.nodes(lambda node: node.name == self.node)
        rw.leave_in_float(node, "to see")


def with_pass(monkeypatch: pytest.MonkeyPatch, **attributes: object) -> GraphModule:
    fxq.register_pass("leaves_in_float")(LeavesInFloat)
    for name, value in attributes.items():
        monkeypatch.setattr(LeavesInFloat, name, value)
    recipe = fxq.recipe("tensorrt").with_accuracy("plain").with_pass("leaves_in_float")
    gm = fxq.prepare(Scored(20).eval(), BATCHES[0], recipe)
    fxq.calibrate(gm, fxq.Data(BATCHES, held_out=0), progress=False)
    return gm


def test_a_pass_leaves_any_operation_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = with_pass(monkeypatch)
    assert off(gm) == {"stem_input_quantizer", "stem._weight_quantizer"}
    assert fxq.explain(gm)["stem"].reason == "to see"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"node": "output"}, "leaves 'output' in float, for which nothing was quantized"),
        ({"stage": Stage.PREPARED}, "declare stage = fxq.Stage.CALIBRATED"),
    ],
    ids=["the output", "another stage"],
)
def test_what_cannot_be_left_in_float_is_refused(
    attributes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fxq.PassError, match=words):
        with_pass(monkeypatch, **attributes)
