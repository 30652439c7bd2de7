"""QuantDescriptor: what it accepts, what it refuses, and its way through text."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import fxq.calib  # noqa: F401 - registers the methods
from fxq.errors import DescriptorError
from fxq.quant import descriptor as presets
from fxq.quant.descriptor import CALIBRATORS, QuantDescriptor, integer_bounds


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({}, (-128, 127)),
        ({"narrow_range": True}, (-127, 127)),
        ({"unsigned": True}, (0, 255)),
        ({"num_bits": 4}, (-8, 7)),
        ({"num_bits": 2, "narrow_range": True}, (-1, 1)),
        ({"num_bits": 16, "unsigned": True}, (0, 65535)),
    ],
    ids=str,
)
def test_bounds_follow_bits_sign_and_narrow_range(options: dict[str, int], bounds: tuple[int, int]) -> None:
    assert QuantDescriptor(**options).bounds == bounds


def test_float8_has_the_bounds_of_its_numbers_and_is_written_as_a_pair() -> None:
    descriptor = QuantDescriptor.from_toml("num_bits = [4, 3]")
    assert descriptor == QuantDescriptor(num_bits=(4, 3)) == QuantDescriptor(num_bits=[4, 3])
    assert hash(descriptor) == hash(QuantDescriptor(num_bits=(4, 3)))
    assert descriptor.num_bits == (4, 3)
    assert descriptor.bounds == (-torch.finfo(torch.float8_e4m3fn).max, torch.finfo(torch.float8_e4m3fn).max)
    assert (descriptor.is_float8, QuantDescriptor().is_float8) == (True, False)


def test_a_dynamic_descriptor_is_one_by_its_calibrator() -> None:
    assert QuantDescriptor(calibrator="dynamic").is_dynamic
    assert not QuantDescriptor().is_dynamic


def test_function_bounds_agree_with_the_descriptor() -> None:
    for bits, unsigned in itertools.product(range(2, 17), (False, True)):
        assert QuantDescriptor(num_bits=bits, unsigned=unsigned).bounds == integer_bounds(bits, unsigned, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bits": 1}, "from 2 to 16"),
        ({"num_bits": 17}, "from 2 to 16"),
        ({"num_bits": 8.0}, "integer"),
        ({"num_bits": True}, "integer"),
        ({"axis": "0"}, "axis"),
        ({"axis": (0.5,)}, "axis"),
        ({"axis": True}, "axis"),
        ({"calibrator": "median"}, "unknown calibrator 'median'"),
        ({"unsigned": True, "narrow_range": True}, "narrow_range"),
        ({"scale_amax": 0.0}, "scale_amax"),
        ({"scale_amax": float("nan")}, "scale_amax"),
        ({"amax": -1.0}, "not negative"),
        ({"amax": float("inf")}, "finite"),
        ({"amax": "big"}, "amax"),
        ({"amax": []}, "amax"),
        ({"amax": [1.0, 2.0]}, "axis is None: give one axis"),
        ({"amax": [1.0, 2.0], "axis": (0, 1)}, "give one axis"),
        ({"amax": [[1.0, 2.0]], "axis": 0}, "amax"),
        ({"symmetric": False, "amax": 1.0}, "affine"),
        ({"range": (0.0, 1.0)}, "range is affine: add symmetric=False"),
        ({"symmetric": False, "range": (1.0, 1.0)}, "range is empty: low 1 is not below high 1"),
        ({"symmetric": False, "range": (0.0, float("inf"))}, "pair of finite numbers"),
        ({"symmetric": False, "range": 1.0}, "pair of finite numbers"),
        ({"symmetric": False, "range": (0.0, 1.0), "axis": 0}, "drop range or axis=0"),
        ({"symmetric": False, "range": (0.0, 1.0), "calibrator": "dynamic"}, "stores no range: drop range"),
        ({"symmetric": False, "learn_amax": True}, "learn_amax"),
        ({"learn_amax": "lsqq"}, "learn_amax is 'lsq' or 'pact', True for 'lsq', or False.*got 'lsqq'"),
        ({"symmetric": False, "learn_amax": "pact"}, "learn_amax learns a symmetric range"),
        ({"num_bits": (5, 2)}, r"only floating-point format is e4m3, num_bits=\(4, 3\)"),
        ({"num_bits": (4, 3), "unsigned": True}, "float8.*unsigned"),
        ({"num_bits": (4, 3), "narrow_range": True}, "float8.*narrow_range"),
        ({"num_bits": (4, 3), "symmetric": False}, "float8.*symmetric=False"),
        ({"num_bits": (4, 3), "fake_quant": False}, "float8.*fake_quant=False"),
        ({"num_bits": (4, 3), "learn_amax": True}, "float8.*learn_amax"),
        ({"num_bits": (4, 3), "calibrator": "entropy"}, "float8.*entropy"),
        ({"block_size": 32}, "block_size=32 needs axis=0"),
        ({"block_size": 32, "axis": 1}, "needs axis=0.*got axis=1"),
        ({"block_size": 24, "axis": 0}, "multiple of 16, got 24"),
        ({"block_size": 0, "axis": 0}, "multiple of 16, got 0"),
        ({"block_size": 32.0, "axis": 0}, "multiple of 16"),
        ({"block_size": 32, "axis": 0, "num_bits": 9}, "num_bits from 2 to 8, got 9"),
        ({"block_size": 32, "axis": 0, "num_bits": (4, 3)}, "num_bits from 2 to 8"),
        ({"block_size": 32, "axis": 0, "unsigned": True}, "signed symmetric"),
        ({"block_size": 32, "axis": 0, "symmetric": False}, "signed symmetric"),
        ({"block_size": 32, "axis": 0, "amax": 1.0}, "drop block_size or amax"),
        ({"block_size": 32, "axis": 0, "learn_amax": True}, "drop block_size or learn_amax"),
        ({"block_size": 32, "axis": 0, "calibrator": "mse"}, "calibrator=\"max\", got 'mse'"),
        ({"calibrator": "dynamic", "amax": 1.0}, "stores no range: drop amax"),
        ({"calibrator": "dynamic", "learn_amax": True}, "stores no range: drop learn_amax"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DescriptorError, match=message):
        QuantDescriptor(**options)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.tensor([1.0, 2.0]), (1.0, 2.0)),
        (np.array([1.0, 2.0]), (1.0, 2.0)),
        ([1, 2], (1.0, 2.0)),
        (torch.tensor(3.0), 3.0),
        ([3.0], 3.0),
        (3, 3.0),
    ],
    ids=["tensor", "array", "list", "scalar tensor", "list of one", "integer"],
)
def test_amax_becomes_plain_numbers(given: object, kept: object) -> None:
    assert QuantDescriptor(axis=0, amax=given).amax == kept


def test_axis_of_one_dimension_is_an_integer() -> None:
    assert QuantDescriptor(axis=(0,)) == QuantDescriptor(axis=0)
    assert QuantDescriptor(axis=(0, -1)).axes == (0, -1)
    assert QuantDescriptor().axes == ()


def test_descriptors_are_values() -> None:
    a, b = QuantDescriptor(axis=0, amax=[1, 2]), QuantDescriptor(axis=0, amax=(1.0, 2.0))
    assert a == b
    assert hash(a) == hash(b)
    assert a != a.replace(num_bits=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.num_bits = 4


def test_replace_names_the_fields_when_one_does_not_exist() -> None:
    with pytest.raises(DescriptorError, match="num_bits, axis"):
        QuantDescriptor().replace(bits=4)


EVERY_FIELD = [
    QuantDescriptor(),
    QuantDescriptor(num_bits=4, axis=(0, 2), narrow_range=True, calibrator="max", name='quoted "name" ä'),
    QuantDescriptor(unsigned=True, fake_quant=False, scale_amax=1.5),
    QuantDescriptor(axis=1, amax=(0.1, 1e-30, 3.0), learn_amax=True),
    QuantDescriptor(symmetric=False, calibrator="percentile"),
    QuantDescriptor(symmetric=False, range=(-0.5, 1.0)),
    QuantDescriptor(narrow_range=False),
    QuantDescriptor(num_bits=(4, 3), axis=0),
    QuantDescriptor(num_bits=4, axis=0, block_size=32),
    QuantDescriptor(symmetric=False, calibrator="dynamic"),
]


@pytest.mark.parametrize("descriptor", EVERY_FIELD, ids=str)
def test_text_holds_every_field(descriptor: QuantDescriptor) -> None:
    assert QuantDescriptor.from_toml(descriptor.to_toml()) == descriptor
    assert QuantDescriptor.from_dict(descriptor.to_dict()) == descriptor


def test_the_cases_above_cover_every_field() -> None:
    seen = {name for descriptor in EVERY_FIELD for name in descriptor.to_dict()}
    assert seen == {field.name for field in dataclasses.fields(QuantDescriptor)}


def test_text_that_is_wrong_is_refused() -> None:
    with pytest.raises(DescriptorError, match="unknown descriptor field 'bits'"):
        QuantDescriptor.from_toml("bits = 8")
    with pytest.raises(DescriptorError, match="not valid TOML"):
        QuantDescriptor.from_toml("num_bits = ")


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_name_is_accepted(calibrator: str) -> None:
    assert QuantDescriptor(calibrator=calibrator).calibrator == calibrator


def test_text_for_people() -> None:
    assert str(QuantDescriptor(num_bits=(4, 3))) == "float8 e4m3 per tensor"
    assert str(QuantDescriptor(num_bits=4, axis=0, block_size=32)) == "int4 per block of 32"
    assert str(QuantDescriptor(calibrator="dynamic", axis=0)) == "dynamic int8 per channel (axis 0)"
    assert str(QuantDescriptor(axis=0)) == "int8 per channel (axis 0)"
    assert str(QuantDescriptor(unsigned=True, symmetric=False)) == "uint8 affine per tensor"


def test_presets_keep_the_output_channels_of_their_layer() -> None:
    axes = {name: value.axis for name, value in vars(presets).items() if name.startswith("QUANT_DESC_")}
    assert axes.pop("QUANT_DESC_8BIT_PER_TENSOR") is None
    assert axes.pop("QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR") is None
    assert all(axis == (1 if "CONVTRANSPOSE" in name else 0) for name, axis in axes.items())
    assert len(axes) == 7


def test_a_learned_range_has_one_name_for_each_rule() -> None:
    assert QuantDescriptor(learn_amax=True) == QuantDescriptor(learn_amax="lsq")
    for rule in ("lsq", "pact"):
        descriptor = QuantDescriptor(learn_amax=rule)
        assert descriptor.to_toml() == f'learn_amax = "{rule}"\n'
        assert QuantDescriptor.from_toml(descriptor.to_toml()) == descriptor


def test_replacing_what_is_so_already_makes_no_new_descriptor() -> None:
    descriptor = QuantDescriptor(num_bits=8, axis=0)
    assert descriptor.replace(num_bits=8, axis=0) is descriptor
    assert descriptor.replace(axis=1) == QuantDescriptor(num_bits=8, axis=1)
    with pytest.raises(DescriptorError, match="unsigned must be True or False, got 0"):
        descriptor.replace(unsigned=0)  # equal to what it is, and no truth value
