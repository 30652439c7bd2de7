"""Calibration methods of one's own: a function in a script, or in an installed package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.calib import Histogram, HistogramCalibrator, fit_names
from fxq.errors import CalibrationError, DescriptorError, PluginError, RecipeError
from fxq.quant import registry


@pytest.fixture(autouse=True)
def forgetfits() -> Iterator[None]:
    before = dict(registry.fits)
    yield
    registry.fits.clear()
    registry.fits.update(before)


def fit_share_of_mass(histogram: Histogram, share: float = 0.5) -> tuple[float, float]:
    """The method under test: the edge below which a share of the values lies."""
    masses = histogram.counts.cumsum(0) / histogram.counts.sum()
    high = float(histogram.edges[1:][masses >= share][0])
    return (0.0 if histogram.symmetric else histogram.low), high


def prepared(calibrator: str) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    return fxq.prepare(model, batch()[:1], fxq.recipe("tensorrt").replace(calibrator=calibrator))


def batch() -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def amax_of_input(gm: torch.fx.GraphModule) -> Tensor:
    amax = gm.get_submodule("0_input_quantizer").amax
    assert isinstance(amax, Tensor)
    return amax


def expected(share: float) -> Tensor:
    calibrator = HistogramCalibrator()
    calibrator.observe(batch())
    assert calibrator.counts is not None
    assert calibrator.edges is not None
    bounds = fit_share_of_mass(Histogram(calibrator.counts, calibrator.edges, 0, 1, 8, False, True), share)
    return torch.tensor(bounds[1])


def test_a_function_is_a_method_everywhere_once_it_has_a_name() -> None:
    fxq.register_fit("share_of_mass")(fit_share_of_mass)
    assert "share_of_mass" in fit_names()
    gm = prepared("histogram")
    fxq.calibrate(gm, [batch()], progress=False)
    fxq.fit_ranges(gm, "share_of_mass", share=0.25)
    assert amax_of_input(gm) == expected(0.25)
    fxq.calibrate_weights(gm, "share_of_mass")

    gm = prepared("share_of_mass")
    fxq.calibrate(gm, [batch()], progress=False)
    assert amax_of_input(gm) == expected(0.5)
    recipe = fxq.recipe("tensorrt").replace(calibrator="share_of_mass")
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(calibrator="share_of_mass"), if_quant=False, if_calib=True)
    quantizer(batch())
    quantizer.load_calib_amax(share=0.75)
    assert quantizer.amax == expected(0.75)


def test_an_installed_package_announces_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halves.py").write_text("def fit(histogram):\n    return 0.0, histogram.high / 2\n")
    info = tmp_path / "halves-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fxq.fits]\nhalf = halves:fit\nbroken = halves:fitt\n")
    monkeypatch.syspath_prepend(tmp_path)

    gm = prepared("half")
    fxq.calibrate(gm, [batch()], progress=False)
    assert amax_of_input(gm) == batch().abs().max() / 2
    assert {"half", "broken"} <= set(fit_names())
    with pytest.raises(PluginError, match=r"method 'broken' \(halves:fitt, of package halves\) does not import"):
        fxq.fit_ranges(gm, "broken")


def test_a_method_that_is_taken_or_has_no_name_is_refused() -> None:
    with pytest.raises(
        PluginError, match=r"'mse' is taken by fxq\.calib\.fits\.mse\.fit, and .*fit_share_of_mass wants"
    ):
        fxq.register_fit("mse")(fit_share_of_mass)
    fxq.register_fit("share_of_mass")(fit_share_of_mass)
    fxq.register_fit("share_of_mass")(fit_share_of_mass)  # a notebook cell that runs twice
    with pytest.raises(PluginError, match="registered under a name"):
        fxq.register_fit(fit_share_of_mass)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(PluginError, match="'number' is no function, but 3"):
        fxq.register_fit("number")(3)  # type: ignore[type-var]  # as well


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": (None, "returned None; it must return two numbers, low and high"),
    "three numbers": ((1.0, 2.0, 3.0), r"returned \(1.0, 2.0, 3.0\); it must return two numbers"),
    "a text": ("ab", "returned 'ab'; it must return two numbers"),
    "not a number": ((0.0, float("nan")), "returned low 0 and high nan: both must be finite"),
    "an infinite low": ((float("-inf"), 1.0), "returned low -inf and high 1: both must be finite"),
    "a negative amax": (
        (0.0, -1.0),
        "returned low 0 and high -1: both must be finite, and high, which is amax, must not",
    ),
}


@pytest.mark.parametrize(("found", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_range_is_refused_by_the_names_of_method_and_quantizer(found: Any, message: str) -> None:
    fxq.register_fit("odd")(lambda histogram: found)
    with pytest.raises(CalibrationError, match=rf"quantizer '0_input_quantizer': method 'odd' {message}"):
        fxq.calibrate(prepared("odd"), [batch()], progress=False)


def test_a_range_upside_down_is_refused_where_it_is_affine() -> None:
    fxq.register_fit("odd")(lambda histogram: (5.0, 1.0))
    calibrator = HistogramCalibrator(symmetric=False)
    calibrator.observe(batch())
    with pytest.raises(
        CalibrationError, match="returned low 5 and high 1: both must be finite, and low must not exceed"
    ):
        calibrator.fit("odd")


def test_a_method_that_fails_is_named() -> None:
    fxq.register_fit("odd")(lambda histogram: 1 / 0)
    with pytest.raises(CalibrationError, match="'0_input_quantizer': method 'odd' failed: ZeroDivisionError: division"):
        fxq.calibrate(prepared("odd"), [batch()], progress=False)


def test_a_name_that_no_method_has_is_refused_wherever_it_is_given() -> None:
    gm = prepared("histogram")
    fxq.calibrate(gm, [batch()], progress=False)
    with pytest.raises(CalibrationError, match="unknown calibration method 'entropi'; did you mean 'entropy'"):
        fxq.fit_ranges(gm, "entropi")
    with pytest.raises(RecipeError, match="unknown calibrator 'share_of_mass'; choose one of max, minmax"):
        fxq.recipe("tensorrt").replace(calibrator="share_of_mass")
    with pytest.raises(DescriptorError, match="unknown calibrator 'share_of_mass'; choose one of max, minmax"):
        fxq.QuantDescriptor(calibrator="share_of_mass")
    with pytest.raises(CalibrationError, match=r"'0_input_quantizer'.*method 'mse' has no option 'share'"):
        fxq.fit_ranges(gm, "mse", share=0.5)
    with pytest.raises(
        CalibrationError, match=r"'0_input_quantizer'.*cannot fit with \{'method': 'mse', 'stride': 'x'\}"
    ):
        fxq.fit_ranges(gm, "mse", stride="x")
