"""TensorQuantizer: what print(model) shows."""

import pytest

from fxq.nn import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "8bit fake per-tensor dynamic calibrator=MaxCalibrator quant"),
        ({"amax": 2.64}, "8bit fake per-tensor amax=2.6400 quant"),
        ({"axis": 0, "amax": (0.0, 0.5, 0.7817)}, "8bit fake axis=0 amax=[0.0000, 0.7817](3) quant"),
        (
            {"num_bits": 4, "unsigned": True, "fake_quant": False, "scale_amax": 1.5},
            "unsigned 4bit integer per-tensor dynamic scale_amax=1.5 calibrator=MaxCalibrator quant",
        ),
        (
            {"narrow_range": True, "learn_amax": True, "amax": 1.0},
            "8bit narrow fake per-tensor amax=1.0000 learned calibrator=MaxCalibrator quant",
        ),
        (
            {"learn_amax": "pact", "amax": 1.0},
            "8bit fake per-tensor amax=1.0000 learned by pact calibrator=MaxCalibrator quant",
        ),
    ],
    ids=["dynamic", "fixed", "channels", "unsigned", "learned", "pact"],
)
def test_printing_says_how_it_quantizes(options, text: str) -> None:
    assert repr(TensorQuantizer(QuantDescriptor(**options))) == f"TensorQuantizer({text})"


def test_printing_says_what_is_switched_and_affine_ranges() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(symmetric=False, calibrator="histogram"), if_clip=True, if_calib=True)
    quantizer.range = (-1.0, 2.0)
    expected = "8bit affine fake per-tensor range=[-1.0000, 2.0000] calibrator=HistogramCalibrator clip quant calib"
    assert quantizer.extra_repr() == expected
    quantizer.disable()
    assert quantizer.extra_repr().endswith("HistogramCalibrator disabled")
