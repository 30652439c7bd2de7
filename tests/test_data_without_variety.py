"""Batches that teach a quantizer a single value: the model is exported, and its user is told."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Half(nn.Module):
    """A convolution whose quantized product is scaled by an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.after(self.conv(x) * gate)


def prepared(recipe: str) -> GraphModule:
    return fxq.prepare(Half().eval(), (X, torch.rand(2, 4, 4, 4)), recipe)


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(("value", "word"), [(0.0, "a range of zeros"), (1.5, "always 1.5")])
def test_a_constant_input_is_named(recipe: str, value: float, word: str) -> None:
    gm = prepared(recipe)
    batches = [(torch.full_like(X, value), torch.rand(2, 4, 4, 4)) for _ in range(3)]
    with pytest.warns(UserWarning, match=rf"conv_input_quantizer \({word}") as caught:
        report = fxq.calibrate(gm, batches, progress=False)
    assert len(caught) == 1
    assert word in report.empty_ranges["conv_input_quantizer"]
    assert any("conv_input_quantizer" in note for note in report.notes)


def test_data_with_variety_gets_no_warning() -> None:
    report = fxq.calibrate(prepared("onnxruntime"), [(X, torch.rand(2, 4, 4, 4))], progress=False)
    assert report.empty_ranges == {}
    assert report.notes == ()


def test_a_method_that_fits_zeros_later_is_named_too() -> None:
    gm, few = prepared("tensorrt"), torch.zeros_like(X)
    few[0, 0, 0, 0] = 1.0
    fxq.calibrate(gm, [(few, torch.rand(2, 4, 4, 4))], progress=False)
    with pytest.warns(UserWarning, match=r"conv_input_quantizer \(a range of zeros"):
        fxq.fit_ranges(gm, "percentile", percentile=50)


class Short:
    """A loader that promises more than it has."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield X, torch.rand(2, 4, 4, 4)


def test_a_loader_that_ends_early_is_in_the_report() -> None:
    with pytest.warns(UserWarning, match="length of 8 batches and ended after 1"):
        report = fxq.calibrate(prepared("tensorrt"), Short(), progress=False)
    assert any("ended after 1" in note for note in report.notes)


def test_where_that_makes_the_passes_of_convert_differ_the_data_is_named() -> None:
    torch.manual_seed(0)
    gm = fxq.prepare(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(4, 8), "onnxruntime"
    )
    with pytest.warns(UserWarning, match="a range of zeros"):
        fxq.calibrate(gm, [torch.zeros(4, 8)], progress=False)
    with pytest.raises(fxq.PassError, match=r"Or the data is why: .*: 0_input_quantizer \(a range of zeros\)"):
        fxq.convert(gm)


@pytest.mark.filterwarnings("ignore:the converted model is far")  # which is true
def test_values_too_small_for_a_range_are_named_as_such_and_convert() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-8)  # type: ignore[operator, union-attr]
        model[0].bias.mul_(1e-8)  # type: ignore[operator, union-attr]
        model[2].bias.mul_(1e-8)  # type: ignore[operator, union-attr]
    x = torch.randn(4, 8)
    gm = fxq.prepare(model, x)
    with pytest.warns(UserWarning, match=r"2_input_quantizer \(up to 1.*e-08, which counts as 0\)"):
        fxq.calibrate(gm, [x], progress=False)
    torch.testing.assert_close(fxq.convert(gm)(x), gm(x), rtol=0, atol=1e-12)
