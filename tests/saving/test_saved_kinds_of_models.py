"""fxq.save and fxq.load of models of all kinds: exported, untraceable in part, with computed weights, by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fxq
from fxq.state import find_state, set_state


def loaded(gm: GraphModule, folder: Path, given: nn.Module, **options: Any) -> GraphModule:
    fxq.save(gm, folder / "model.fxq")
    return fxq.load(folder / "model.fxq", given, **options)


class Tagger(nn.Module):
    """Takes ids and a mask by name, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.down(F.relu(self.up(self.embed(ids))) * mask.unsqueeze(-1))}


def ids(count: int = 2) -> dict[str, Tensor]:
    found = torch.randint(0, 7, (count, 5), generator=torch.Generator().manual_seed(0))
    return {"ids": found, "mask": (found > 2).float()}


def test_a_model_that_torch_export_traced_from_shapes_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = fxq.prepare(Tagger().eval(), ids(), frontend="export")
    assert "torch.export" in fxq.explain(prepared).traced
    fxq.calibrate(prepared, [ids(4)], progress=False)
    found = loaded(prepared, tmp_path, Tagger())
    assert torch.equal(found(**ids())["logits"], prepared(**ids())["logits"])
    assert fxq.explain(found).to_dict() == fxq.explain(prepared).to_dict()


class Branching(nn.Module):
    """A module that torch.fx cannot trace, for its Python asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


def test_a_part_that_was_kept_whole_in_float(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), Branching(), nn.Linear(4, 2)).eval()

    x = torch.rand(2, 4)
    with pytest.warns(UserWarning, match="kept whole in float"):
        prepared = fxq.prepare(make(), x, untraceable="float")
    fxq.calibrate(prepared, [x], progress=False)
    with pytest.warns(UserWarning, match="kept whole in float"):
        found = loaded(prepared, tmp_path, make())
    assert torch.equal(found(x), prepared(x))


def test_weights_that_are_computed_while_training(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()

    torch.manual_seed(0)
    x = torch.randn(8, 4)
    prepared = fxq.prepare(make(), x, qat=True)
    fxq.calibrate(prepared, [x], progress=False)
    prepared.train()
    with torch.no_grad():
        prepared.get_parameter("0.parametrizations.weight.original0").mul_(1.25)
    found = loaded(prepared, tmp_path, make())
    assert torch.equal(found(x), prepared(x))
    assert torch.equal(fxq.convert(found)(x), fxq.convert(prepared)(x))


def test_quantizers_placed_by_hand(tmp_path: Path) -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = fxq.TensorQuantizer(), fxq.TensorQuantizer(fxq.QuantDescriptor(num_bits=6))
            self.linear = fxq.nn.QuantLinear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(self.linear(x)) @ self.right(x).transpose(0, 1)

    torch.manual_seed(0)
    x = torch.randn(8, 4)
    prepared = fxq.prepare(ByHand().eval(), x)
    fxq.calibrate(prepared, [x], progress=False)
    found = loaded(prepared, tmp_path, ByHand())
    assert torch.equal(found(x), prepared(x))
    changed = ByHand()
    changed.right = fxq.TensorQuantizer()
    with pytest.raises(fxq.SavedModelError, match="quantizer 'right' is int8 per tensor here, and was saved as int6"):
        fxq.load(tmp_path / "model.fxq", changed)


def test_a_model_that_was_cast_after_it_was_prepared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    prepared = fxq.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), x)
    prepared.to(torch.bfloat16)
    fxq.calibrate(prepared, [x.bfloat16()], progress=False)
    found = loaded(prepared, tmp_path, nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert torch.equal(found(x.bfloat16()), prepared(x.bfloat16()))


def test_sizes_that_the_models_python_decides_by_are_remembered(tmp_path: Path) -> None:
    class OfShapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, rows: Tensor) -> Tensor:
            return self.linear(x) if rows.shape[0] == 3 else x

    torch.manual_seed(0)
    inputs = (torch.randn(2, 4), torch.ones(3))
    prepared = fxq.prepare(OfShapes().eval(), inputs)
    fxq.calibrate(prepared, [inputs], progress=False)
    assert torch.equal(loaded(prepared, tmp_path, OfShapes())(*inputs), prepared(*inputs))
    with pytest.raises(fxq.SavedModelError, match="computes something else"):
        fxq.load(tmp_path / "model.fxq", OfShapes(), (torch.randn(2, 4), torch.ones(2)))


def test_example_inputs_of_which_no_form_is_stored_are_asked_for(tmp_path: Path) -> None:
    model = Tagger().eval()
    prepared = fxq.prepare(model, ids(), frontend="export")
    state = find_state(prepared)
    assert state is not None
    set_state(prepared, replace(state, settings=replace(state.settings, example_inputs=(object(),))))
    fxq.save(prepared, tmp_path / "model.fxq")
    with pytest.raises(fxq.InputError) as raised:
        fxq.load(tmp_path / "model.fxq", Tagger())
    assert "pass example_inputs to load" in raised.value.__notes__[0]
    assert fxq.load(tmp_path / "model.fxq", Tagger(), ids()) is not None


def test_a_model_that_cannot_run_on_made_up_inputs_asks_for_real_ones(tmp_path: Path) -> None:
    class OfOne(Tagger):
        def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return super().forward(ids - 2, mask)

    known = {"ids": ids()["ids"].clamp(min=2), "mask": ids()["mask"]}
    prepared = fxq.prepare(OfOne().eval(), known)
    fxq.save(prepared, tmp_path / "model.fxq")
    with pytest.raises(fxq.InputError) as raised:
        fxq.load(tmp_path / "model.fxq", OfOne())
    assert "made up from the shapes in the file: pass example_inputs" in raised.value.__notes__[0]
    assert fxq.load(tmp_path / "model.fxq", OfOne(), known) is not None
