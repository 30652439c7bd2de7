"""refine_ranges: a range is narrowed where the layers that read the tensor err less for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq_passes.accuracy.softmax_reader import SoftmaxReader


def outliers(weight_of_outlier: float) -> tuple[nn.Module, Tensor]:
    """Return a layer and inputs of which one channel is 30 times as large as the others."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    x[:, 3] *= 30
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[:, 3] = weight_of_outlier
    return nn.Sequential(layer).eval(), x


def refined(model: nn.Module, x: Tensor, target: str = "tensorrt", **options: float) -> GraphModule:
    recipe = fxq.recipe(target).with_pass("refine_ranges", **options)
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data([x], max_samples=256, held_out=0), progress=False)
    return gm


def reach(gm: GraphModule) -> float:
    low, high = gm.get_submodule("0_input_quantizer").range  # type: ignore[misc]
    return float(torch.maximum(low.abs(), high.abs()))


def error(model: nn.Module, gm: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        errors = model(x) - gm(x)
    return float((errors - errors.mean(0)).square().mean())


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_range_is_narrowed_where_readers_do_not_ask_for_its_ends(target: str) -> None:
    model, x = outliers(0.0)
    plain, gm = refined(model, x, target, most_error=0.0), refined(model, x, target)
    assert reach(gm) < 0.5 * reach(plain)
    assert error(model, gm, x) < 0.5 * error(model, plain, x)


@pytest.mark.parametrize("sign", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_one_end_that_readers_do_not_ask_for_is_clipped_alone(target: str, sign: int) -> None:
    """Clipping both costs more at the other end than finer steps bring."""
    model, x = outliers(0.0)
    x[:, 3] = sign * x[:, 3].abs() * (torch.arange(256) % 3 == 0)
    plain, gm = refined(model, x, target, most_error=0.0), refined(model, x, target)
    assert error(model, gm, x) < 0.1 * error(model, plain, x)
    kept, clipped = (float(end.abs()) for end in gm.get_submodule("0_input_quantizer").range[::sign])  # type: ignore
    assert kept > 0.8 * float((-sign * x).max())
    assert clipped < 0.3 * float((sign * x).max())


def test_a_range_whose_ends_count_is_left_alone() -> None:
    model, x = outliers(1.0)
    plain, gm = refined(model, x, most_error=0.0), refined(model, x)
    assert reach(gm) == reach(plain)


def test_the_gain_asked_for_is_an_option() -> None:
    """With 0 nothing is narrowed: then the range is the largest value, which is what plain calibration gives."""
    model, x = outliers(0.0)
    assert reach(refined(model, x, most_error=0.0)) == pytest.approx(float(x.abs().max()), rel=1e-3)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_samples_reach_that_are_not_kept_is_no_room_to_narrow(target: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), 2 * torch.rand(256, 8) - 1
    x[200] *= 4
    gm = fxq.prepare(model, x[:2], fxq.recipe(target).with_pass("refine_ranges"))
    fxq.calibrate(gm, fxq.Data([x], max_samples=64, held_out=0), progress=False)
    assert reach(gm) == pytest.approx(float(x.abs().max()), rel=1e-3)


def test_a_given_range_stays() -> None:
    model, x = outliers(0.0)
    given = fxq.QConfig(activation=fxq.QuantDescriptor(amax=50.0))
    recipe = fxq.recipe("tensorrt").with_rules(("0", given)).with_pass("refine_ranges")
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data([x], held_out=0), progress=False)
    assert reach(gm) == 50.0


def test_what_no_layer_reads_is_judged_by_its_own_error() -> None:
    """Both operands of a product: clipping evenly spread values costs more than finer steps bring."""

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    torch.manual_seed(0)
    x = torch.rand(64, 16, 16) * 2 - 1
    gm = fxq.prepare(Product().eval(), x[:2], fxq.recipe("tensorrt").with_pass("refine_ranges"))
    fxq.calibrate(gm, fxq.Data([x], max_samples=64, held_out=0), progress=False)
    quantizer = gm.get_submodule("matmul_input_quantizer")
    assert float(quantizer.amax) == pytest.approx(float(x.abs().max()), rel=1e-3)  # type: ignore[arg-type]


def test_the_range_of_a_stored_summand_is_judged_in_silence() -> None:
    """torch warns where a parameter becomes a number, and warnings are errors here."""

    class Shifted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.shift_c = nn.Parameter(torch.linspace(-1, 3, 4)[None])

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(super().forward(input) + self.shift_c)

    torch.manual_seed(0)
    gm = refined(Shifted().eval(), torch.randn(16, 4), "openvino")
    assert gm.get_submodule("add_input_quantizer_1").range[1] == pytest.approx(3, rel=0.1)  # type: ignore[index]


def test_a_layer_without_matrix_form_leaves_the_values_to_judge() -> None:
    """A transposed convolution reads the tensor."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2)).eval(), torch.randn(16, 2, 5, 5)
    x[0, 0, 0, 0] = 1000
    gm = fxq.prepare(model, x[:2], fxq.recipe("tensorrt").with_pass("refine_ranges"))
    fxq.calibrate(gm, fxq.Data([x], max_samples=64, held_out=0), progress=False)
    assert reach(gm) == pytest.approx(1000, rel=1e-3)  # clipping it would cost more than all steps


def test_rare_large_values_that_count_are_not_missed_by_the_draw() -> None:
    """Three positions of many thousands hold what half of the power is in."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 2, 1)).eval(), torch.randn(16, 1, 40, 40)
    for sample in (1, 6, 12):
        x[sample, 0, 7, 7] = 90
    recipe = fxq.recipe("tensorrt").with_pass("refine_ranges")
    gm = fxq.prepare(model, x[:2], recipe)
    fxq.calibrate(gm, fxq.Data([x], max_samples=64, held_out=0), progress=False)
    assert reach(gm) == pytest.approx(90, rel=1e-3)


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU])
def test_the_end_that_an_activation_does_not_tell_apart_is_clipped_alone(activation: type[nn.Module]) -> None:
    """Half of the values are far below 0, where both activations are next to 0; ONNX Runtime quantizes them first."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, padding=1)
    with torch.no_grad():
        first.weight[2:] *= 20
        first.bias[2:] = -80  # type: ignore[index]
    model, x = nn.Sequential(first, activation(), last).eval(), torch.randn(16, 2, 6, 6)
    gm = refined(model, x, "onnxruntime")
    (quantizer,) = next(node for node in gm.graph.nodes if node.target == "0").users
    low, high = gm.get_submodule(str(quantizer.target)).range  # type: ignore[misc]
    values = first(x).detach()
    assert float(values.min()) < -50
    assert -12 < float(low) < -3
    assert float(high) > 0.6 * float(values.max())
    plain = refined(model, x, "onnxruntime", most_error_before_activation=0.0)
    assert plain.get_submodule(str(quantizer.target)).range[0] == pytest.approx(float(values.min()), rel=1e-3)  # type: ignore
    assert error(model, gm, x) < 0.3 * error(model, plain, x)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_one_half_of_the_samples_reached_alone_is_no_reason(target: str) -> None:
    """Shares of what the other half suggests clip it, and the values are non-negative, so that one end is 0."""
    model, _ = outliers(0.0)
    x = torch.rand(256, 8, generator=torch.Generator().manual_seed(0))
    x[200, 3] = 30
    assert reach(refined(model, x, target)) == pytest.approx(30, rel=1e-3)


class _Logits(nn.Module):
    """Scores of five classes, of which two reach far below the others, at each position; softmax reads them.

    ``moves``: they are moved in between; ``returns``: the model returns them too.
    """

    def __init__(self, moves: bool, returns: bool = False, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 5, 1)
        with torch.no_grad():
            self.layer.weight *= 4
            self.layer.weight[3:] *= 8
            self.layer.bias[3:] = -250
        self.moves, self.returns = moves, returns

    def forward(self, x: Tensor) -> Any:
        scores = self.layer(x)
        shares = scores.flatten(2).softmax(1) if self.moves else scores.softmax(self.dim)
        return (shares, scores) if self.returns else shares


@pytest.mark.parametrize("moves", [False, True])
def test_the_end_that_a_softmax_does_not_tell_apart_is_clipped_alone(moves: bool) -> None:
    model, x = _Logits(moves).eval(), torch.randn(16, 3, 6, 6)
    gm = refined(model, x, "onnxruntime")
    plain = refined(model, x, "onnxruntime", most_error_before_activation=0.0, most_error_of_shares=100.0)
    (low, high), reached = (one.get_submodule("layer_output_quantizer").range for one in (gm, plain))  # type: ignore
    assert float(reached[0]) < -250
    assert -60 < float(low) < -5
    assert float(high) > 0.8 * float(reached[1])
    assert error(model, gm, x) < 0.2 * error(model, plain, x)


def test_scores_that_the_model_returns_as_well_are_asked_too() -> None:
    x = torch.randn(16, 3, 6, 6)
    low, alone = (
        refined(_Logits(moves=False, returns=returns).eval(), x, "onnxruntime")
        .get_submodule("layer_output_quantizer")
        .range[0]  # type: ignore[index]
        for returns in (True, False)
    )
    assert float(low) < 3 * float(alone)


SOFTMAXES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "as many classes as places": (lambda scores: scores.flatten(2).softmax(-1), [6, 8, 5]),
    "over samples": (lambda scores: scores.softmax(0), [6, 6, 6]),
    "of a vector": (lambda scores: scores.flatten().softmax(0), [6, 6, 6]),
}


@pytest.mark.parametrize(("softmax", "sizes"), SOFTMAXES.values(), ids=SOFTMAXES.keys())
def test_a_softmax_over_any_dimension_is_calibrated_with(softmax: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return softmax(self.layer(x))

    torch.manual_seed(0)
    batches = [torch.randn(3, 3, size, size) for size in sizes]
    gm = fxq.prepare(Scores().eval(), batches[0], fxq.recipe("onnxruntime").with_pass("refine_ranges"))
    fxq.calibrate(gm, fxq.Data(batches, held_out=0), progress=False)
    assert gm.get_submodule("layer_output_quantizer").has_range


def test_a_softmax_over_samples_leaves_the_values_to_judge() -> None:
    """Halves of the samples would be halves of its classes."""
    model, x = _Logits(moves=False, dim=0).eval(), torch.randn(16, 3, 6, 6)
    low = refined(model, x, "onnxruntime").get_submodule("layer_output_quantizer").range[0]  # type: ignore[index]
    assert float(low) == pytest.approx(float(model.layer(x).detach().min()), rel=1e-3)


@pytest.mark.parametrize("rows", [10, 100_000])
def test_a_softmax_errs_as_its_shares_do(rows: int) -> None:
    """With long tensors rows are drawn, of which there are enough to tell within some per cent."""
    torch.manual_seed(0)
    values = [3 * torch.randn(4, 5, rows // 10), 3 * torch.randn(6, 5, rows // 10)]
    quantizer = fxq.TensorQuantizer(fxq.QuantDescriptor(amax=3.0))
    found = SoftmaxReader(values, 1, 512).error(quantizer, 1)
    wanted = torch.cat([values[0][:0], values[1][1:]]).double()  # the second five of ten samples
    errors = (quantizer(wanted.float()).double().softmax(1) - wanted.softmax(1)).square().mean()
    power = torch.cat(values).double().softmax(1).square().mean()
    assert found == pytest.approx(float(errors / power), rel=1e-4 if rows == 10 else 0.05)
