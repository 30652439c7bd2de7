"""Stored tensors that the graph itself quantizes: a matrix of a product, and a weight quantized by hand in forward."""

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq import QuantDescriptor
from fxq.graph import weight_quantizers

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """A product with a stored matrix, and one quantizer by hand on another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.kernel = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(4, 6))
        self.quantizer = fxq.TensorQuantizer(QuantDescriptor(axis=0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x @ self.matrix, self.quantizer(self.kernel))


@pytest.mark.parametrize(("recipe", "has_data"), [("tensorrt", True), ("dynamic", False), ("weight_only", False)])
def test_a_stored_matrix_and_one_quantized_by_hand_become_stored_integers(recipe: str, has_data: bool) -> None:
    gm = fxq.prepare(Gate().eval(), X, recipe)
    fxq.calibrate(gm, [X] if has_data else None, progress=False)
    converted = fxq.convert(gm)
    shapes = {tuple(value.shape) for value in converted.buffers() if value.dtype == torch.int8 and value.dim() == 2}
    assert shapes == {(8, 6) if recipe == "weight_only" else (6, 8), (4, 6)}
    assert not list(converted.parameters())
    with torch.no_grad():
        found, expected = converted(X), gm(X)
    step = float(expected.abs().max()) / 127
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * step)  # a value between two codes may go the other way


def test_a_rule_leaves_such_a_product_in_float() -> None:
    gm = fxq.prepare(Gate().eval(), X, fxq.recipe("dynamic").with_rules(("matmul", None)))
    assert fxq.explain(gm)["matmul"].reason == "rule ('matmul', None) leaves it in float"
    assert fxq.convert(gm).get_buffer("quantizer.weight").dtype == torch.int8  # by hand, which rules do not touch


def test_their_ranges_follow_the_weights_and_no_batch_is_needed() -> None:
    gm = fxq.prepare(Gate().eval(), X, "weight_only")
    with torch.no_grad():
        gm.get_parameter("kernel").mul_(3)
    fxq.calibrate_weights(gm)
    found = {path: quantizer for path, _, quantizer in weight_quantizers(gm)}
    assert set(found) == {"matmul_weight_quantizer", "quantizer"}
    expected = gm.get_parameter("kernel").detach().abs().amax(1)
    torch.testing.assert_close(found["quantizer"].amax.flatten(), expected, rtol=0, atol=0)


class Shares(Gate):
    """One quantizer for a weight and an activation: their range takes data to know."""

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x @ self.matrix).sum() + self.quantizer(self.kernel).sum()


def test_a_quantizer_that_an_activation_shares_is_no_weight_quantizer() -> None:
    model = Shares()
    model.quantizer = fxq.TensorQuantizer(QuantDescriptor())
    gm = fxq.prepare(model.eval(), X, "weight_only")
    assert [path for path, _, _ in weight_quantizers(gm)] == ["matmul_weight_quantizer"]
    with pytest.raises(fxq.CalibrationError, match=r"1 quantizers wait for data, such as 'quantizer'"):
        fxq.calibrate(gm)


class Counts(nn.Module):
    """Writes into the buffer that it quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.ones(8))
        self.quantizer = fxq.TensorQuantizer(QuantDescriptor())

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.sum((0, 1)))
        return self.quantizer(self.total)


def test_a_buffer_that_forward_changes_is_no_weight() -> None:
    assert list(weight_quantizers(fxq.prepare(Counts().eval(), X, "weight_only"))) == []


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = Gate()
    with torch.no_grad():
        model.kernel[0, 0] = torch.nan
    gm = fxq.prepare(model.eval(), X, "weight_only")
    with pytest.raises(fxq.CalibrationError, match=r"the weight of 'quantizer' holds NaN or infinity"):
        fxq.calibrate_weights(gm)
