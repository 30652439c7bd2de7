import pytest
import torch
from torch import nn

import fxq
from fxq.graph import graph_text

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def prepared() -> torch.fx.GraphModule:
    return fxq.prepare(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval(), X)


def quantizer(gm: torch.fx.GraphModule, path: str) -> fxq.TensorQuantizer:
    found = gm.get_submodule(path)
    assert isinstance(found, fxq.TensorQuantizer)
    return found


def test_a_quantizer_without_range_is_an_error_that_lists_the_paths_and_the_cure() -> None:
    with pytest.raises(fxq.CalibrationError) as error:
        fxq.convert(prepared())
    assert str(error.value) == (
        "2 quantizers have no range: 0_input_quantizer, 2_input_quantizer. Run fxq.calibrate(prepared, batches) with "
        "data that reaches them before fxq.convert, or switch them off with .disable()"
    )


def test_only_those_without_range_are_listed() -> None:
    gm = prepared()
    quantizer(gm, "0_input_quantizer").amax = torch.tensor(1.0)
    with pytest.raises(fxq.CalibrationError, match=r"^1 quantizers have no range: 2_input_quantizer"):
        fxq.convert(gm)


def test_a_disabled_quantizer_needs_no_range() -> None:
    gm = prepared()
    quantizer(gm, "0_input_quantizer").amax = torch.tensor(1.0)
    quantizer(gm, "2_input_quantizer").disable()
    assert "2_input_quantizer" not in graph_text(fxq.convert(gm))


def test_many_paths_are_counted_not_listed() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)]).eval()
    with pytest.raises(fxq.CalibrationError, match=r"12 quantizers have no range: .* and 4 more"):
        fxq.convert(fxq.prepare(model))


def test_weights_without_range_are_fitted() -> None:
    gm = prepared()
    for path in ("0_input_quantizer", "2_input_quantizer"):
        quantizer(gm, path).amax = torch.tensor(1.0)
    converted = fxq.convert(gm)
    scale = converted.get_buffer("0.weight_scale")
    weight = gm.get_submodule("0").weight
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(scale, weight.detach().abs().amax((1, 2, 3)) / 127, rtol=1e-6, atol=0)


def test_the_prepared_model_is_left_as_it_was() -> None:
    gm = prepared()
    fxq.calibrate(gm, [X], progress=False)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    fxq.convert(gm)
    assert before.keys() == gm.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in gm.state_dict().items())


def test_of_two_quantizers_around_a_dropout_one_is_left() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 4, 3)).eval()
    prepared = fxq.prepare(model, x, "onnxruntime", qat=True)
    fxq.calibrate(prepared, [x])
    converted = fxq.convert(prepared)
    # Both quantizers have one range, so one of them changes nothing; 0.05 is a few steps of the output.
    torch.testing.assert_close(converted(x), prepared(x), atol=0.05, rtol=0)
