"""What counts as good: figures against slow ones, and outputs of which most is lost though the whole looks well."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.compare.quality import Quality, measure


def quality(want: Tensor, have: Tensor) -> Quality:
    return measure([[("output", want)]], [[("output", have)]], len(want), "a test")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_figures_are_those_of_their_definition() -> None:
    want, have = noise(6, 5), noise(6, 5) + 0.15 * noise(6, 5, seed=1)
    (found,) = quality(want, have).outputs
    first, second = want.numpy().astype(np.float64), have.numpy().astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * math.log10((first**2).sum() / ((first - second) ** 2).sum()))
    assert found.agreement == pytest.approx((first.argmax(1) == second.argmax(1)).mean())
    centred = first - sorted(first.flatten())[14]  # the lower median of thirty
    each = sorted(10 * np.log10((centred**2).sum(1) / ((first - second) ** 2).sum(1)))
    assert found.typical_db == pytest.approx((each[2] + each[3]) / 2)  # the median of six
    assert found.verdict == quality(want, have).verdict == "fair"


def loud_sample() -> tuple[Tensor, Tensor]:
    want = noise(16, 4)
    want[0] *= 1e4
    return want, want.where(torch.arange(16)[:, None] == 0, 0.0)


def offset() -> tuple[Tensor, Tensor]:
    want = 300 + noise(16, 1)
    return want, want + 2 * noise(16, 1, seed=1)


def mask() -> tuple[Tensor, Tensor]:
    want, filled = noise(16, 8), torch.arange(8) > 4
    return want.masked_fill(filled, -1e9), torch.zeros(16, 8).masked_fill(filled, -1e9)


def units() -> tuple[Tensor, Tensor]:
    want = noise(4, 6, 3, 3)
    want[:, :4] *= 1e3
    return want, want.where(torch.arange(6)[:, None, None] < 4, 0.0)


@pytest.mark.parametrize("case", [loud_sample, offset, mask, units])
def test_what_is_lost_is_seen_behind_what_is_loud(case: Callable[[], tuple[Tensor, Tensor]]) -> None:
    found = quality(*case())
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20
    assert found.verdict == "broken"
    assert found.outputs[0].is_below(5)


def test_integers_are_judged_by_how_many_are_equal() -> None:
    want = torch.arange(10)
    assert quality(want, want).verdict == "good"
    found = quality(want, want.where(want < 4, -1))
    assert (found.agreement, found.verdict, found.outputs[0].is_below(5)) == (0.4, "broken", True)


def test_nothing_finite_is_nothing_right_and_no_signal_is_unknown() -> None:
    assert quality(noise(2, 2), torch.full((2, 2), math.nan)).verdict == "broken"
    assert quality(torch.zeros(2, 2), noise(2, 2)).sqnr_db is None
    assert str(quality(torch.zeros(2, 1), torch.zeros(2, 1))).startswith("nothing to compare (unknown), against a test")


def test_the_worst_output_speaks_for_all() -> None:
    want, bad = noise(4, 3), noise(4, 3, seed=2)
    found = measure([[("a", want), ("b", want)]], [[("a", want), ("b", bad)]], 4, "a test")
    assert found.worst is not None
    assert found.worst.name == "b"
    assert str(found).startswith("b: ")


def test_of_a_share_what_8_bits_do_not_tell_apart_is_not_lost() -> None:
    boxes = 0.5 + 2e-4 * noise(4, 20, 4)  # of a detector before training
    have = (boxes * 256).round() / 256
    classes = (12 * noise(16, 500, seed=3)).softmax(1)  # most are never likely
    for want, found in ((boxes, have), (classes, (classes * 256).round() / 256)):
        plain = quality(want, found)
        named: list[list[tuple[str, Tensor]]] = [[("output", one)] for one in (want, found)]
        as_share = measure([named[0]], [named[1]], len(want), "a test", are_shares=[True])
        assert (plain.verdict, as_share.verdict) == ("broken", "good")
        assert as_share.sqnr_db == plain.sqnr_db
    lost = measure([[("output", boxes)]], [[("output", boxes * 0)]], 4, "a test", are_shares=[True])
    assert lost.verdict == "broken"


class Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4, bias=False)
        nn.init.normal_(self.linear.weight, std=2e-4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sigmoid().reshape(-1, 2, 2)


def test_a_detector_before_training_raises_no_alarm(tmp_path: Path) -> None:
    x = noise(16, 8)
    converted = fxq.quantize(Boxes().eval(), [x], "onnxruntime", progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    for found in (fxq.explain(converted).quality, report.quality):
        assert found is not None
        assert found.verdict == "good"
