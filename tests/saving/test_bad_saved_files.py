"""fxq.save and fxq.load refuse what they cannot keep, and say what is wrong with a file or a model."""

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from saved_models import Mobile, calibrated, images, mobile
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.saving.packed import FIELDS
from fxq.state import find_state


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; do not modify it."""
    path = tmp_path_factory.mktemp("saved") / "model.fxq"
    fxq.save(calibrated("mobile"), path)
    return path


def rewritten(file: Path, to: Path, **changes: Any) -> Path:
    """Write the file again with other fields in its header; one that is None is left out."""
    with safetensors.safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["fxq"])
    header = {name: value for name, value in {**header, **changes}.items() if value is not None or name not in changes}
    safetensors.torch.save_file(safetensors.torch.load_file(file), to, {"fxq": json.dumps(header)})
    return to


def header_of(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["fxq"])


def test_a_model_of_other_tensors_is_listed_by_name(file: Path) -> None:
    class Other(Mobile):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.extra = nn.Conv2d(8, 12, 1), nn.Linear(2, 2)
            del self.fc

    with pytest.raises(fxq.SavedModelError) as raised:
        fxq.load(file, Other())
    text = str(raised.value)
    assert "- fc.weight: float32[10, 8]" in text
    assert "+ extra.weight: float32[2, 2]" in text
    assert "! up.weight: float32[16, 8, 1, 1], here float32[12, 8, 1, 1]" in text


def test_another_dtype_is_another_model(file: Path) -> None:
    with pytest.raises(fxq.SavedModelError, match=r"! first.weight: float32\[8, 3, 3, 3\], here float16"):
        fxq.load(file, Mobile().half())


def test_a_model_that_computes_something_else_is_shown_where(file: Path) -> None:
    class Changed(Mobile):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Shorter(Mobile):
        def forward(self, x: Tensor) -> Tensor:
            x = self.project(self.relu2(self.norm2(self.depthwise(self.relu1(self.norm(self.first(x)))))))
            return self.fc(F.relu(self.down(F.relu(self.up(x)))).mean((2, 3)))

    with pytest.raises(fxq.SavedModelError, match=r"(?s)computes something else.*\+ mul = call_function _operator.mul"):
        fxq.load(file, Changed())
    with pytest.raises(fxq.SavedModelError, match="its graph has no add"):
        fxq.load(file, Shorter())


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_says_so(file: Path, keep: int, tmp_path: Path) -> None:
    (tmp_path / "cut.fxq").write_bytes(file.read_bytes()[:keep])
    with pytest.raises(fxq.SavedModelError, match=r"cut\.fxq cannot be read: it (is|has \d bytes, so it is) truncated"):
        fxq.load(tmp_path / "cut.fxq", Mobile())


class Harmful:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save({"weight": Harmful()}, path), r"a file of torch\.save"),
        (lambda path: path.write_bytes(pickle.dumps(Harmful())), "a pickle"),
        (lambda path: safetensors.torch.save_file({"weight": torch.ones(2)}, path), "was not written by fxq.save"),
        (lambda path: path.write_text("name = 'a recipe in TOML'"), "was not written by fxq.save"),
        (lambda path: None, "there is no file"),
    ],
    ids=["torch.save", "pickle", "safetensors", "text", "nothing"],
)
def test_a_foreign_file_is_named_and_never_unpickled(
    write: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "foreign.fxq")
    with pytest.raises(fxq.SavedModelError, match=reason):
        fxq.load(tmp_path / "foreign.fxq", Mobile())
    assert not (tmp_path / "unpickled").exists()


def test_a_file_of_a_newer_fxq_says_so(file: Path, tmp_path: Path) -> None:
    newer = rewritten(file, tmp_path / "newer.fxq", version=99, fxq="7.0")
    with pytest.raises(fxq.SavedModelError, match=r"version 99 of the format, written by fxq 7\.0.*update fxq"):
        fxq.load(newer, Mobile())


def test_every_field_of_the_header_is_needed(file: Path, tmp_path: Path) -> None:
    header = header_of(file)
    assert header.keys() == FIELDS
    del header["plans"]
    safetensors.torch.save_file({}, tmp_path / "model.fxq", {"fxq": json.dumps(header)})
    with pytest.raises(fxq.SavedModelError, match="it lacks plans"):
        fxq.load(tmp_path / "model.fxq", Mobile())


def test_a_file_that_switches_something_else_off_is_damaged(file: Path, tmp_path: Path) -> None:
    edits = {**header_of(file)["edits"], "switched_off": ["up"]}
    with pytest.raises(fxq.SavedModelError, match="the file is damaged: it switches 'up' off, which is no quantizer"):
        fxq.load(rewritten(file, tmp_path / "model.fxq", edits=edits), Mobile())


def test_a_file_of_version_0_is_read(file: Path, tmp_path: Path) -> None:
    header = header_of(file)
    quantizers = {
        path: {**fields, "switches": [fields["switches"][name] for name in ("enabled", "quant", "clip", "calib")]}
        for path, fields in header["quantizers"].items()
    }
    quantizers["up._weight_quantizer"]["switches"][0] = False
    old = rewritten(file, tmp_path / "old.fxq", version=0, quantizers=quantizers, frozen=None, islands=None, left=None)
    loaded = fxq.load(old, Mobile())
    assert not loaded.up.weight_quantizer.is_enabled
    assert loaded.down.weight_quantizer.is_enabled


def test_a_file_of_version_1_is_read(file: Path, tmp_path: Path) -> None:
    old = rewritten(file, tmp_path / "old.fxq", version=1, islands=None, left=None)
    assert not fxq.diff(old, fxq.load(old, Mobile()))


def test_what_is_not_registered_is_named(file: Path, tmp_path: Path) -> None:
    header = header_of(file)
    recipe = header["recipe"].replace('name = "plan_ops"', 'name = "plan_mine"')
    with pytest.raises(fxq.RecipeError, match="plan_mine"):
        fxq.load(rewritten(file, tmp_path / "a.fxq", recipe=recipe), Mobile())
    target = {**header["target"], "name": "elsewhere"}
    loaded = fxq.load(rewritten(file, tmp_path / "b.fxq", target=target), Mobile())
    assert fxq.explain(loaded).target == "elsewhere"  # a target is data, and all of it is in the file


def test_a_target_that_changed_since_is_that_of_the_file(file: Path, tmp_path: Path) -> None:
    found = header_of(file)["target"]
    target = {**found, "ops": found["ops"][:-1]}
    with pytest.warns(UserWarning, match="target 'tensorrt' of the file is not the one that is registered"):
        loaded = fxq.load(rewritten(file, tmp_path / "model.fxq", target=target), Mobile())
    state = find_state(loaded)
    assert state is not None
    assert len(state.settings.target.ops) == len(fxq.get_target("tensorrt").ops) - 1


def test_a_module_of_a_plugins_own_cannot_be_saved(tmp_path: Path) -> None:
    class Bound(nn.ReLU6):
        """A class that no file can name."""

    prepared = calibrated("mobile", "fast")
    clip = next(path for path, one in prepared.named_modules() if isinstance(one, nn.Hardtanh))
    prepared.set_submodule(clip, Bound())
    with pytest.raises(fxq.SavedModelError, match=f"cannot save the Bound at '{clip}'"):
        fxq.save(prepared, tmp_path / "model.fxq")
    assert not list(tmp_path.iterdir())


def test_a_predicate_is_code_and_not_saved(tmp_path: Path) -> None:
    recipe = fxq.recipe("tensorrt").with_rules((lambda path, module: path == "fc", None))
    prepared = fxq.prepare(mobile(), images(2), recipe)
    with pytest.raises(fxq.RecipeError, match=r"cannot save the model.*predicate"):
        fxq.save(prepared, tmp_path / "model.fxq")


def test_extra_state_is_not_dropped_in_silence(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def get_extra_state(self) -> Any:
            return {"count": 3}

        def set_extra_state(self, state: Any) -> None: ...

    recipe = fxq.recipe("tensorrt").replace(leaf_modules=("Counting",))
    prepared = fxq.prepare(nn.Sequential(nn.Linear(4, 4), Counting()).eval(), torch.ones(1, 4), recipe)
    with pytest.raises(fxq.SavedModelError, match=r"'1' \(Counting\).*get_extra_state"):
        fxq.save(prepared, tmp_path / "model.fxq")


def test_what_fxq_did_not_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxq.StageError, match=r"save takes the result of fxq\.prepare"):
        fxq.save(mobile(), tmp_path / "model.fxq")  # type: ignore[arg-type]
    fxq.save(calibrated("mobile"), tmp_path / "m.fxq")
    with pytest.raises(fxq.InputError, match=r"load takes a torch\.nn\.Module, got the class Mobile"):
        fxq.load(tmp_path / "m.fxq", Mobile)  # type: ignore[arg-type]


def test_files_are_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "model.fxq"
    (tmp_path / "model.fxq.data").write_text("somebody's")
    fxq.save(calibrated("mobile"), path)
    probe = tmp_path / "probe"
    probe.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(probe.stat().st_mode)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.fxq", "model.fxq.data", "probe"]
    with pytest.raises(fxq.ExportError, match="does not exist"):
        fxq.save(calibrated("mobile"), tmp_path / "no" / "model.fxq")
    with pytest.raises(fxq.ExportError, match=r"fxq\.export_onnx does"):
        fxq.save(calibrated("mobile"), tmp_path / "model.onnx")
