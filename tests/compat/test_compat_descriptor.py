"""QuantDescriptor of fxq.compat: arguments, errors and text of pytorch-quantization, on fxq's descriptor."""

import copy
from typing import Any

import numpy as np
import pytest

import fxq
from fxq.compat.pytorch_quantization import tensor_quant
from fxq.compat.pytorch_quantization.nn import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QuantDescriptor, ScaledQuantDescriptor
from fxq.errors import DescriptorError, DescriptorTypeError

DESCRIPTORS: list[dict[str, Any]] = [
    {},
    {"num_bits": 4, "name": "a", "axis": (1, 2), "unsigned": True},
    {"num_bits": (4, 3)},
    {"amax": 3.1415926536, "fake_quant": False},
    {"amax": [1.5, 2.5], "axis": 0, "narrow_range": True},
    {"amax": np.ones((3, 1, 1, 1), dtype=np.float32), "calib_method": "histogram"},
    {"learn_amax": True, "scale_amax": 0.5, "calib_method": "entropy"},
    {"axis": 0, "block_size": 32, "num_bits": 4},
]


@pytest.mark.parametrize("arguments", DESCRIPTORS, ids=[", ".join(each) or "default" for each in DESCRIPTORS])
def test_a_descriptor_survives_dict_yaml_toml_and_copies(arguments: dict[str, Any]) -> None:
    descriptor = QuantDescriptor(**arguments)

    assert QuantDescriptor(**descriptor.dict()) == descriptor
    assert QuantDescriptor.from_yaml(descriptor.to_yaml()) == descriptor
    assert QuantDescriptor.from_toml(descriptor.to_toml()) == descriptor
    assert copy.deepcopy(descriptor) == descriptor.replace() == descriptor
    assert hash(descriptor.replace()) == hash(descriptor)
    assert descriptor.replace(name="other") != descriptor


def test_yaml_of_the_original_is_read() -> None:
    text = "amax: 3.1415927410125732\naxis:\n- 1\n- 2\nname: a\nnum_bits: 2\n"

    assert QuantDescriptor.from_yaml(text) == QuantDescriptor(2, "a", axis=(1, 2), amax=3.1415927410125732)


def test_it_is_a_descriptor_of_fxq() -> None:
    descriptor = QuantDescriptor(num_bits=7, axis=0, calib_method="max")

    assert QuantDescriptor is ScaledQuantDescriptor
    assert isinstance(descriptor, fxq.QuantDescriptor)
    assert fxq.TensorQuantizer(descriptor).num_bits == 7
    assert TensorQuantizer(fxq.QuantDescriptor(num_bits=7, axis=0)).axis == 0
    assert descriptor.calib_method == descriptor.calibrator == "max"


def test_amax_is_a_float32_array() -> None:
    one, several = QuantDescriptor(amax=1.2), QuantDescriptor(amax=[1.3, 1.4])

    assert one.amax == np.float32(1.2)
    np.testing.assert_array_equal(several.amax, np.float32([1.3, 1.4]))
    assert several.axis == -1  # the dimension that a flat range broadcasts along
    assert QuantDescriptor(amax=np.ones((1, 3, 1))).axis == 1
    assert QuantDescriptor().amax is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_bits": 7.5}, "num_bits must be a positive integer"),
        ({"num_bits": (5, 2)}, "num_bits must be a positive integer"),
        ({"name": 3}, "name must be a string"),
        ({"amax": "oops"}, "amax must be float, list or ndarray"),
        ({"axis": (1, 2), "learn_amax": True}, "axis is ignored and must be None"),
        ({"calib_methods": "max"}, r"Unused keys: \['calib_methods'\]"),
    ],
)
def test_what_was_a_type_error_still_is(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        QuantDescriptor(**arguments)
    assert isinstance(caught.value, DescriptorTypeError)


@pytest.mark.parametrize("arguments", [{"num_bits": -1}, {"num_bits": 0}, {"calib_method": "best"}, {"amax": -1.0}])
def test_what_was_a_value_error_still_is(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_bits|calibrator|amax"):
        QuantDescriptor(**arguments)


def test_broken_yaml_is_refused() -> None:
    for text in ("a: [", "just words"):
        with pytest.raises(DescriptorError, match="YAML"):
            QuantDescriptor.from_yaml(text)


def test_presets_keep_the_output_channels() -> None:
    axes = {name: getattr(tensor_quant, name).axis for name in tensor_quant.__all__ if name.startswith("QUANT_DESC")}

    assert len(axes) == 9
    assert {name for name, axis in axes.items() if axis is None} == {
        "QUANT_DESC_8BIT_PER_TENSOR",
        "QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR",
    }
    assert {axis for name, axis in axes.items() if "TRANSPOSE" in name} == {1}
    assert tensor_quant.QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR.unsigned
