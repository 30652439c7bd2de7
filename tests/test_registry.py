import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.installed import Package, run_python
from torch import nn

import fxq
from fxq.calib import fit_names
from fxq.kinds import known_kinds
from fxq.registry import create_pass

ROOT = Path(__file__).parent.parent
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def install(package: str, folder: Path, entry: str, module: str = "", code: str = "") -> None:
    """Lay an installed package with an entry point of fxq.passes into ``folder``."""
    Package(package, "fxq.passes", entry).install(folder, module, code)


def test_passes_of_an_installed_package_are_found_and_run_in_a_recipe(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/plugin/fxq_test_plugin", tmp_path / "fxq_test_plugin")
    install("fxq-test-plugin", tmp_path, "test_plugin = fxq_test_plugin")
    printed = run_python(
        "import torch, fxq\n"
        "registration = fxq.registered_passes()['drop_softmax']\n"
        "print(registration.origin, registration.pass_type.__name__)\n"
        "recipe = fxq.recipe('tensorrt').with_pass('drop_softmax')\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Softmax(1)).eval()\n"
        "print(fxq.prepare(model, recipe=recipe).graph.output_node().args)\n"
        "try:\n"
        "    fxq.prepare(model, recipe=fxq.recipe('tensorrt').with_pass('leave_dead_node', after='fold_batchnorm'))\n"
        "except fxq.PassError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    assert printed.splitlines() == [
        "test_plugin DropSoftmax",
        "(_0,)",
        "pass 'leave_dead_node' (fxq_test_plugin.passes.LeaveDeadNode), run after fold_batchnorm, breaks the rules of "
        "stage 'normalized': node 'neg' is dead: erase it or give it a reader",
    ]


@pytest.mark.slow  # a process of its own, like the one above
def test_the_example_is_found_once_a_sample_of_it_is_installed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/custom_pass/fxq_fold_scaling.py", tmp_path)
    install("fxq-fold-scaling", tmp_path, "fold_scaling = fxq_fold_scaling")
    printed = run_python(
        "import fxq\n"
        "from fxq.passbase import pass_summary\n"
        "found = fxq.registered_passes()['fold_scaling'].pass_type\n"
        "print(found.stage, pass_summary(found))\n",
        tmp_path,
    )
    assert printed.startswith("normalized Fold the multiplication by a number behind a convolution or linear layer")


def test_a_plugin_that_does_not_import_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken-plugin", tmp_path, "broken = fxq_test_broken", "fxq_test_broken", "import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = (
        r"^plugin 'broken' \(fxq_test_broken, of package broken-plugin\) does not import: "
        "ModuleNotFoundError: No module named 'no_such_module'; fix or uninstall the package$"
    )
    with pytest.raises(fxq.PluginError, match=message):
        fxq.registered_passes()


def test_a_plugin_whose_module_is_missing_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("gone-plugin", tmp_path, "gone = fxq_test_gone")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(fxq.PluginError, match=r"plugin 'gone' .* does not import: ModuleNotFoundError"):
        fxq.registered_passes()


def test_a_plugin_that_registers_nothing_is_an_error_that_names_the_file_really_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("empty-plugin", tmp_path, "empty = fxq_test_empty", "fxq_test_empty", "print('no pass here')\n")
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "fxq_test_empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(shadow)  # a file of the same name beside the user's script
    with pytest.raises(fxq.PluginError, match="registers no pass and no lowering; the file imported is") as error:
        fxq.registered_passes()
    assert str(shadow / "fxq_test_empty.py") in str(error.value)


def test_a_plugin_that_takes_a_taken_name_is_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import fxq\n"
        "@fxq.register_pass('fold_batchnorm')\n"
        "class Mine(fxq.Pass):\n"
        "    stage = fxq.Stage.NORMALIZED\n"
        "    def run(self, rw): pass\n"
    )
    install("greedy-plugin", tmp_path, "greedy = fxq_test_greedy", "fxq_test_greedy", code)
    monkeypatch.syspath_prepend(tmp_path)
    message = (
        r"plugin 'greedy' \(fxq_test_greedy, of package greedy-plugin\) does not load: the pass name 'fold_batchnorm' "
        "is taken by fxq_passes.fold_batchnorm.FoldBatchnorm, and fxq_test_greedy.Mine wants it too"
    )
    with pytest.raises(fxq.PluginError, match=message):
        fxq.registered_passes()
    with pytest.raises(fxq.PluginError, match=message):
        fxq.registered_passes()  # asking again does not help


def test_a_plugin_that_fails_half_way_leaves_no_kind_and_no_calibration_method_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import fxq, torch\nclass Half(torch.nn.Module): pass\nfxq.register_kind('half_done', Half)\n"
        "fxq.register_fit('half_done')(lambda histogram: 1.0)\nraise RuntimeError\n"
    )
    install("half-plugin", tmp_path, "half = fxq_test_half", "fxq_test_half", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(fxq.PluginError, match=r"plugin 'half' .* does not import: RuntimeError"):
        fxq.registered_passes()
    assert "half_done" not in known_kinds()
    assert "half_done" not in fit_names()


def test_installed_packages_are_looked_through_again_only_where_a_folder_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    fxq.registered_passes()
    with monkeypatch.context() as patch:
        read: list[str] = []
        patch.setattr(importlib.metadata, "entry_points", lambda group: read.append(group) or ())
        fxq.prepare(nn.Sequential(nn.ReLU()).eval())
        assert read == []
    install("late-plugin", tmp_path, "late = fxq_test_late")
    with pytest.raises(fxq.PluginError, match=r"plugin 'late' .* does not import: ModuleNotFoundError"):
        fxq.registered_passes()


def test_built_in_passes_come_through_the_same_door() -> None:
    passes = fxq.registered_passes()
    assert {spec.name for spec in fxq.recipe("tensorrt").passes} <= set(passes)
    (entry,) = importlib.metadata.entry_points(group="fxq.passes")
    assert (entry.name, entry.value) == ("builtin", "fxq_passes")
    assert passes["fold_batchnorm"].pass_type.__module__ == "fxq_passes.fold_batchnorm"


class Negate(fxq.Pass):
    """Bypass nothing."""

    stage = fxq.Stage.NORMALIZED

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.op == "call_module"):
            rw.skip(node, "seen by a user's pass")


def test_a_users_pass_in_a_script_runs_in_a_recipe() -> None:
    fxq.register_pass("test_negate")(Negate)
    recipe = fxq.recipe("tensorrt").with_pass("test_negate", after="fold_batchnorm")
    prepared = fxq.prepare(nn.Sequential(nn.ReLU()).eval(), recipe=recipe)
    assert fxq.explain(prepared)["0"].reason == "seen by a user's pass"
    assert fxq.registered_passes()["test_negate"].origin == ""


def test_a_notebook_cell_may_run_twice_but_another_class_may_not_take_the_name() -> None:
    def cell() -> type[fxq.Pass]:
        @fxq.register_pass("test_cell")
        class Cell(fxq.Pass):
            stage = fxq.Stage.NORMALIZED

            def run(self, rw: fxq.Rewriter) -> None:
                pass

        return Cell

    cell()
    again = cell()
    assert type(create_pass("test_cell", {})) is again
    with pytest.raises(fxq.PluginError, match=r"the pass name 'test_cell' is taken by test_registry.*cell"):
        fxq.register_pass("test_cell")(Negate)


class NoStage(fxq.Pass):
    def run(self, rw: fxq.Rewriter) -> None:
        pass


class NoRun(fxq.Pass):
    stage = fxq.Stage.NORMALIZED


def test_a_pass_that_does_nothing_is_refused() -> None:
    with pytest.raises(fxq.PluginError, match=r"NoRun\) has no method run: add `def run\(self, rw\) -> None`"):
        fxq.register_pass("test_no_run")(NoRun)


def test_a_pass_without_stage_a_class_that_is_none_and_a_bad_name_are_errors() -> None:
    with pytest.raises(fxq.PluginError, match=r"NoStage\) names no stage: add `stage = fxq.Stage.NORMALIZED`"):
        fxq.register_pass("test_no_stage")(NoStage)
    with pytest.raises(fxq.PluginError, match=r"is not a subclass of fxq.Pass"):
        fxq.register_pass("test_no_pass")(nn.ReLU)  # type: ignore[type-var]
    with pytest.raises(fxq.PluginError, match="use lower-case words joined by underscores"):
        fxq.register_pass("Not A Name")(Negate)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"improves": True}, "of stage 'normalized' sets improves, which only passes with data have: declare stage"),
        ({"streams": True}, "of stage 'normalized' sets streams, which"),
        ({"stage": fxq.Stage.CALIBRATED, "streams": True, "improves": True}, "sets streams and improves: what streams"),
    ],
)
def test_what_only_a_pass_with_data_can_be_is_refused_of_others(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(fxq.PluginError, match=message):
        fxq.register_pass("test_says_too_much")(type("SaysTooMuch", (Negate,), attributes))


@dataclass(frozen=True)
class WithOptions(fxq.Pass):
    stage = fxq.Stage.NORMALIZED
    needed: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("share is above 1")

    def run(self, rw: fxq.Rewriter) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass 'test_options' refuses its options {}: .*needed"),
        ({"needed": 1, "other": 2}, "has no option 'other'; its options: needed, share"),
        ({"needed": 1, "share": "much"}, "option 'share' is a float, got 'much'"),
        ({"needed": 1, "share": 2.0}, "refuses its options .*: share is above 1"),
    ],
    ids=["missing", "unknown", "wrong type", "refused"],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    fxq.register_pass("test_options")(WithOptions)
    with pytest.raises(fxq.RecipeError, match=message):
        create_pass("test_options", options)
    assert create_pass("test_options", {"needed": 1, "share": 1}) == WithOptions(1, 1)


def test_an_unknown_pass_is_an_error_that_suggests_one() -> None:
    with pytest.raises(fxq.RecipeError, match="unknown pass 'fold_batchnrom'; did you mean 'fold_batchnorm'"):
        fxq.recipe("tensorrt").with_pass("fold_batchnrom")
    with pytest.raises(fxq.RecipeError, match="unknown pass 'zzz'; `fxq passes` lists all"):
        create_pass("zzz", {})


def test_the_decorator_without_a_name_is_refused() -> None:
    with pytest.raises(fxq.PluginError, match="under a name"):
        fxq.register_pass(fxq.Pass)  # type: ignore[arg-type]
