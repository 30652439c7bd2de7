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
    assert explanation["head"].reason.startswith("with the best range for its scores softmax errs by ")
    assert ";" not in explanation["head"].reason  # what later passes say of it is the same
    assert {one.path for one in fxq.sensitivity(gm, BATCHES, progress=False).groups} == {"stem"}
    assert [one.role for one in explanation["head"].quantized] == ["input"]  # the codes that the stem writes
    assert not explanation["softmax"].is_quantized
    data = [4 * batch for batch in BATCHES]
    fxq.calibrate(gm, data, progress=False)
    assert off(gm) == WHOLE
    low, high = gm.get_submodule("stem_input_quantizer").range  # type: ignore[misc]
    assert float(high - low) > 20  # of the second data
    with torch.no_grad():
        gm.get_parameter("stem.bias").add_(1e-6)  # as training does, behind which weights stay as they are
    fxq.calibrate(gm, [1e-4 * one for one in BATCHES], progress=False)
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
    """Leaves what is called ``nodes`` in float."""

    name = "leaves_in_float"
    stage = Stage.CALIBRATED
    tolerance = fxq.ANY
    improves = True
    nodes: tuple[str, ...] = ("stem",)

    def run(self, rw: Rewriter) -> None:
        found = {node.name: node for node in rw.gm.graph.nodes}
        for name in self.nodes:
            rw.leave_in_float(found[name], "to see")


def with_pass(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **attributes: object) -> GraphModule:
    fxq.register_pass("leaves_in_float")(LeavesInFloat)
    for name, value in attributes.items():
        monkeypatch.setattr(LeavesInFloat, name, value)
    recipe = fxq.recipe("tensorrt").with_accuracy("plain").with_pass("leaves_in_float")
    gm = fxq.prepare(model.eval(), BATCHES[0], recipe)
    fxq.calibrate(gm, fxq.Data(BATCHES, held_out=0), progress=False)
    return gm


def test_a_pass_leaves_any_operation_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = with_pass(monkeypatch, Scored(20))
    assert off(gm) == {"stem_input_quantizer", "stem._weight_quantizer"}
    assert fxq.explain(gm)["stem"].reason == "to see"


class Two(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


@pytest.mark.parametrize("nodes", [("first",), ("first", "second"), ("second", "first")], ids=str)
def test_a_quantizer_goes_with_the_last_that_wants_it(monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, ...]) -> None:
    expected = {f"{name}._weight_quantizer" for name in nodes}
    assert off(with_pass(monkeypatch, Two(), nodes=nodes)) == expected | (
        {"first_input_quantizer"} if len(nodes) == 2 else set()
    )


class InALoop(LeavesInFloat):
    """Leaves ``left`` in float at the node ``at`` of a walk, and looks at all behind."""

    at, left = "stem_input_quantizer", "stem"

    def run(self, rw: Rewriter) -> None:
        layers = [node for node in rw.gm.graph.nodes if node.op == "call_module"]
        (left,) = [node for node in layers if node.name == self.left]
        last: list[Tensor] = []
        for node, (_, last) in rw.run_both(layers):  # noqa: B007 - that of the last one
            if node.name == self.at:
                rw.leave_in_float(left, "to see")
        with torch.no_grad():
            assert torch.equal(torch.cat(last), torch.cat([rw.gm(*inputs.args) for inputs in rw.data]))


def test_what_is_left_in_float_in_a_walk_is_so_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeavesInFloat, "run", InALoop.run)
    for name in ("at", "left"):
        monkeypatch.setattr(LeavesInFloat, name, getattr(InALoop, name), raising=False)
    assert "stem._weight_quantizer" in off(with_pass(monkeypatch, Scored(20)))


def test_a_quantizer_that_a_walk_has_left_behind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeavesInFloat, "run", InALoop.run)
    for name, value in {"at": "stem", "left": "stem"}.items():
        monkeypatch.setattr(LeavesInFloat, name, value, raising=False)
    with pytest.raises(
        fxq.PassError, match="changes 'stem_input_quantizer' at node 'stem', when the streams have left"
    ):
        with_pass(monkeypatch, Scored(20))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"nodes": ("output",)}, "leaves 'output' in float, for which nothing was quantized"),
        ({"stage": Stage.PREPARED}, "declare stage = fxq.Stage.CALIBRATED"),
        ({"streams": True, "improves": False}, "declares streams = True and leaves 'stem' in float"),
    ],
    ids=["the output", "another stage", "a pass that streams"],
)
def test_what_cannot_be_left_in_float_is_refused(
    attributes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fxq.PassError, match=words):
        with_pass(monkeypatch, Scored(20), **attributes)
