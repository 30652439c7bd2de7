"""calibrate and fit_ranges: what they take as batches, and that the ranges are those of the float model."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.small import images, residual
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import fxq
from fxq.graph import activation_quantizers

TRT = fxq.recipe("tensorrt")
DATA = images(24)


class TwoInputs(nn.Module):
    """Needs two inputs and takes a third."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return (self.left(a) + self.right(b)) * scale


class OptionalMask(nn.Module):
    """Its second input may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        return self.fc(x)


def prepared(recipe: fxq.Recipe = TRT) -> GraphModule:
    return fxq.prepare(residual(), images(2), recipe)


def ranges(model: GraphModule) -> dict[str, Any]:
    found = {path: one for path, one in model.named_modules() if isinstance(one, fxq.TensorQuantizer)}
    return {path: [bound.tolist() for bound in one.range] for path, one in found.items()}


def activation_ranges(model: GraphModule) -> dict[str, Any]:
    return {path: [float(bound) for bound in one.range] for path, one in activation_quantizers(model).items()}


def calibrated(batches: Any, recipe: fxq.Recipe = TRT, **options: Any) -> dict[str, Any]:
    model = prepared(recipe)
    fxq.calibrate(model, batches, **options)
    return ranges(model)


BATCHES = {
    "list of tensors": lambda: list(DATA.split(8)),
    "one tensor": lambda: DATA,
    "generator": lambda: (batch for batch in DATA.split(8)),
    "tuples": lambda: [(batch,) for batch in DATA.split(8)],
    "lists": lambda: [[batch] for batch in DATA.split(8)],
    "dicts": lambda: [{"x": batch} for batch in DATA.split(8)],
    "loader of (input, label)": lambda: DataLoader(TensorDataset(DATA, torch.arange(24)), batch_size=8),
    "loader of inputs": lambda: DataLoader(DATA, batch_size=8, shuffle=True),
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES.keys())
def test_all_forms_of_batches_give_the_same_ranges(batches: Any) -> None:
    recipe = TRT.replace(calibrator="max")
    assert calibrated(batches(), recipe) == calibrated(DATA.split(8), recipe)


def test_forward_feeds_batches_of_any_other_form() -> None:
    nested = [{"data": {"pixels": batch}, "id": 3} for batch in DATA.split(8)]
    fed = calibrated(nested, forward=lambda model, batch: model(batch["data"]["pixels"]))
    assert fed == calibrated(DATA.split(8))


def test_a_model_with_two_inputs_takes_both_of_a_pair() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 4), torch.randn(8, 6)
    for batch in [(a, b)], [{"a": a, "b": b}], [{"a": a, "b": b, "scale": 2.0}], [(a, b, 2.0)]:
        model = fxq.prepare(TwoInputs().eval(), (a, b))
        fxq.calibrate(model, batch)
        found = activation_ranges(model)
        assert found["left_input_quantizer"][1] == float(a.abs().max())
        assert found["right_input_quantizer"][1] == float(b.abs().max())


def test_a_pair_is_two_inputs_where_the_example_inputs_were_two() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(8, 4), torch.full((8, 4), 3.0)
    masked = fxq.prepare(OptionalMask().eval(), (x, mask))
    fxq.calibrate(masked, [(x, mask)])
    assert activation_ranges(masked)["fc_input_quantizer"][1] == float((3 * x).abs().max())
    plain = fxq.prepare(OptionalMask().eval(), x)
    fxq.calibrate(plain, [(x, mask)])  # (input, label)
    assert activation_ranges(plain)["fc_input_quantizer"][1] == float(x.abs().max())


@pytest.mark.parametrize("calibrator", ["max", "histogram"])
def test_ranges_are_the_largest_magnitudes_of_the_float_model(calibrator: str) -> None:
    model, seen = residual(), {}

    def watch(path: str) -> Any:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[path] = max(seen.get(path, 0.0), float(inputs[0].abs().max()))

        return look

    for path in ("conv1", "conv2", "fc"):
        model.get_submodule(path).register_forward_pre_hook(watch(path))
    with torch.no_grad():
        for batch in DATA.split(8):
            model(batch)
    found = calibrated(DATA.split(8), TRT.replace(calibrator=calibrator))
    for path, largest in seen.items():
        # Folding the batch norm reorders float32 sums: some 1e-7 a layer.
        assert found[f"{path}_input_quantizer"] == pytest.approx([-largest, largest], rel=1e-5)


def test_weight_ranges_are_per_channel_and_need_no_data() -> None:
    model = prepared()
    fxq.calibrate_weights(model)
    for path in ("conv1", "conv2", "fc"):
        layer = model.get_submodule(path)
        expected = layer.weight.detach().flatten(1).abs().amax(1)
        torch.testing.assert_close(layer.weight_quantizer.amax.flatten(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [TRT, fxq.recipe("onnxruntime")], ids=["symmetric", "affine"])
@pytest.mark.parametrize("calibrator", ["max", "minmax", "histogram", "percentile"])
def test_ranges_do_not_depend_on_the_split_into_batches(recipe: fxq.Recipe, calibrator: str) -> None:
    # The same first batch, since its range sets the width of a histogram's bins.
    recipe = recipe.replace(calibrator=calibrator)
    whole = calibrated([DATA[:8], DATA[8:]], recipe)
    assert calibrated(DATA.split(8), recipe) == whole
    assert calibrated([DATA[:8], *DATA[8:].split(3)], recipe) == whole


def test_fit_ranges_gives_what_calibrating_with_that_method_gives() -> None:
    model = prepared()
    fxq.calibrate(model, DATA.split(8))
    results = []
    for method in ("percentile", "mse", "entropy", "max"):
        fxq.fit_ranges(model, method)
        results.append(ranges(model))
        assert results[-1] == calibrated(DATA.split(8), TRT.replace(calibrator=method))
    assert len({str(found) for found in results}) == len(results)


def test_fit_ranges_fits_affine_ranges_too() -> None:
    recipe, model = fxq.recipe("onnxruntime"), prepared(fxq.recipe("onnxruntime"))
    fxq.calibrate(model, DATA.split(8))
    widest = ranges(model)
    fxq.fit_ranges(model, "percentile")
    assert ranges(model) == calibrated(DATA.split(8), recipe.replace(calibrator="percentile"))
    assert ranges(model) != widest


def test_fit_ranges_takes_the_options_of_the_method() -> None:
    model = prepared()
    fxq.calibrate(model, DATA.split(8))
    fxq.fit_ranges(model, "percentile", percentile=99.0)
    narrow = activation_ranges(model)
    fxq.fit_ranges(model, "percentile", percentile=100.0)
    layers = {path: found for path, found in activation_ranges(model).items() if "conv" in path}
    assert layers
    assert all(narrow[path][1] < found[1] for path, found in layers.items())
    fxq.fit_ranges(model)  # what the recipe says: the maximum
    assert ranges(model) == calibrated(DATA.split(8))


def test_a_second_calibration_starts_anew() -> None:
    model = prepared()
    fxq.calibrate(model, [10 * DATA])
    fxq.calibrate(model, DATA.split(8))
    assert ranges(model) == calibrated(DATA.split(8))


def test_the_state_of_the_calibrators_does_not_grow_with_the_number_of_batches() -> None:
    def size(model: GraphModule) -> int:
        return sum(_bytes_in(one.calibrator) for one in activation_quantizers(model).values())

    few, many = prepared(), prepared()
    fxq.calibrate(few, [DATA[:8]] * 2)
    fxq.calibrate(many, (DATA[:8] for _ in range(20)))
    assert size(many) == size(few)


def test_batches_are_taken_one_at_a_time() -> None:
    """A loader that lives on a small disk must not be read ahead or kept."""
    alive: list[int] = []

    class Batch(dict):
        def __init__(self, index: int) -> None:
            super().__init__(x=DATA[:2])
            self.index = index
            alive.append(index)

        def __del__(self) -> None:
            alive.remove(self.index)

    def loader() -> Iterator[Batch]:
        for index in range(6):
            assert len(alive) <= 1
            yield Batch(index)

    fxq.calibrate(prepared(), loader())


def test_a_rule_gives_one_layer_another_descriptor_and_calibrator() -> None:
    own = fxq.QConfig(
        activation=fxq.QuantDescriptor(calibrator="percentile", scale_amax=0.5),
        weight=fxq.QuantDescriptor(num_bits=4),
    )
    model = prepared(TRT.with_rules(("conv2", own), ("fc", None)))
    fxq.calibrate(model, DATA.split(8))
    plain = calibrated(DATA.split(8))
    assert model.conv2.weight_quantizer.num_bits == 4
    assert model.conv2.weight_quantizer.amax.shape in ((), (1,))
    assert activation_ranges(model)["conv2_input_quantizer"][1] < 0.6 * plain["conv2_input_quantizer"][1]
    assert ranges(model)["conv1_input_quantizer"] == plain["conv1_input_quantizer"]
    assert not hasattr(model, "fc_input_quantizer")
    assert type(model.fc) is nn.Linear


def test_a_fixed_range_is_kept() -> None:
    fixed = fxq.QConfig(activation=fxq.QuantDescriptor(amax=2.5))
    model = prepared(TRT.with_rules(("conv1", fixed)))
    fxq.calibrate(model, DATA.split(8))
    assert activation_ranges(model)["conv1_input_quantizer"] == [-2.5, 2.5]


def test_calibration_observes_in_eval_mode_and_quantizes_afterwards() -> None:
    model = fxq.prepare(residual(), images(2), qat=True).train()
    model.conv1_input_quantizer.disable_quant()
    fxq.calibrate(model, DATA.split(8))
    found, wanted = ranges(model), calibrated(DATA.split(8))
    assert found.keys() == wanted.keys()
    for path, bounds in wanted.items():  # dropout would have widened those of fc; batch norm folds by other sums
        for one, other in zip(found[path], bounds, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-6, atol=0)
    assert model.training
    assert model.dropout.training
    assert not model.conv1_input_quantizer.is_quant_enabled
    assert model.fc_input_quantizer.is_quant_enabled
    assert not any(one.is_calib_enabled for one in activation_quantizers(model).values())


def _bytes_in(calibrator: Any) -> int:
    pending, seen, total = [calibrator], set(), 0
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        total += value.numel() * value.element_size() if isinstance(value, Tensor) else sys.getsizeof(value)
        if isinstance(value, list | tuple):
            pending += value
        elif hasattr(value, "__dict__") and not isinstance(value, Tensor | type):
            pending += vars(value).values()
    return total


def test_a_failed_calibration_leaves_nothing_to_fit() -> None:
    x = images(2, seed=0)
    prepared = fxq.prepare(residual(), x)
    fxq.calibrate(prepared, [x])
    with pytest.raises(fxq.CalibrationError, match="NaN"):
        fxq.calibrate(prepared, [x * 0.1, x * float("nan")])
    with pytest.raises(fxq.CalibrationError):
        fxq.fit_ranges(prepared, "max")
