"""The pass's own test: it helps a trained model, and is undone where it does not."""

import pytest
import torch
from fxq_match_outputs import MatchOutputs
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxq

# Few bits, so that rounding changes the gain of a channel visibly.
FEW_BITS = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))
RECIPE = fxq.recipe("tensorrt").with_rules((nn.Linear, FEW_BITS)).with_pass("match_outputs")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """1797 handwritten digits of 8x8, scaled to [0, 1], shuffled."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def classifier(digits: Tensor) -> nn.Module:
    """Trained for a second; it says "more ink than usual" of each quarter, and the digit's left-right balance."""
    torch.manual_seed(0)
    labels = torch.stack([*(part.mean(1) for part in digits.chunk(4, 1)), digits @ torch.linspace(-1, 1, 64)], 1)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(digits), labels).backward()
        optimizer.step()
    return model.eval()


def test_it_brings_a_trained_model_closer_to_its_float_self(classifier: nn.Module, digits: Tensor) -> None:
    prepared = fxq.prepare(classifier, digits[:1], RECIPE)
    report = fxq.calibrate(prepared, fxq.Data(digits[:512].split(64), max_samples=512))
    step = report.steps[-1]
    assert step.name == "match_outputs"
    assert step.kept
    assert step.sqnr_before_db is not None
    assert step.sqnr_after_db is not None
    assert step.sqnr_after_db > step.sqnr_before_db + 1


def test_learning_from_two_samples_it_is_undone(classifier: nn.Module, digits: Tensor) -> None:
    prepared = fxq.prepare(classifier, digits[:1], RECIPE)
    report = fxq.calibrate(prepared, fxq.Data(digits[:64].split(4), max_samples=32, held_out=0.9375))
    assert not report.steps[-1].kept
    for path in ("0", "2", "4"):
        layer, original = prepared.get_submodule(path), classifier.get_submodule(path)
        assert torch.equal(layer.weight, original.weight)
        assert torch.equal(layer.bias, original.bias)


def test_its_option_is_part_of_the_recipe() -> None:
    recipe = fxq.recipe("tensorrt").with_pass("match_outputs", most_gain=1.5)
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.passes[-3].create() == MatchOutputs(most_gain=1.5)
