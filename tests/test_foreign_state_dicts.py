"""The state dict of a model that was prepared otherwise: a warning says so, beside the keys that torch names."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxq


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def prepared(recipe: str) -> GraphModule:
    x = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    found = fxq.prepare(model(), x, recipe=recipe)
    fxq.calibrate(found, [x])
    return found


def test_another_recipe_is_named_and_what_to_do() -> None:
    given, other = prepared("tensorrt"), prepared("onnxruntime")
    for into, state in ((other, given), (copy.deepcopy(other), given), (given, other)):
        with (
            pytest.warns(UserWarning, match=r"prepared otherwise, with another recipe.*fxq\.load") as caught,
            pytest.raises(RuntimeError, match="Unexpected key"),
        ):
            into.load_state_dict(state.state_dict())
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="prepared otherwise"):
        assert other.load_state_dict(given.state_dict(), strict=False).missing_keys


def test_what_fits_is_loaded_in_silence() -> None:
    given = prepared("tensorrt")
    state = given.state_dict()
    given.load_state_dict(state)
    fxq.prepare(model(), recipe="tensorrt").load_state_dict(state)  # which has no ranges yet
    given.load_state_dict({key: value for key, value in state.items() if key.startswith("0.")}, strict=False)
    with pytest.raises(RuntimeError, match="Missing key"):  # of another model altogether: torch has said it all
        given.load_state_dict({f"module.{key}": value for key, value in state.items()})


def test_the_states_of_a_float_model_and_of_a_prepared_one_are_told_apart() -> None:
    given = prepared("tensorrt")
    bare = {key: value for key, value in given.state_dict().items() if not key.endswith("_amax")}
    with pytest.warns(UserWarning, match="that of a float model"), pytest.raises(RuntimeError, match="Missing key"):
        given.load_state_dict(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples
        converted = fxq.convert(given)
    with pytest.warns(UserWarning, match="this one is converted"), pytest.raises(RuntimeError, match="Unexpected key"):
        converted.load_state_dict(given.state_dict())
