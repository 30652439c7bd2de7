"""Targets of a script and of installed packages: found by name, in recipes and on the command line."""

import shutil
from pathlib import Path

import pytest
import torch
from support.installed import Package, run_python
from torch import nn

import fxq
from fxq import OpRule, Target

LINEAR = OpRule("linear", inputs=True, weight=True)
AS_OBJECT = 'import fxq\nTARGET = fxq.Target("{name}", (fxq.OpRule("linear", inputs=True, weight=True),))\n'


def install(package: str, folder: Path, entry: str, module: str = "", code: str = "") -> None:
    """Lay an installed package with an entry point of fxq.targets into ``folder``."""
    Package(package, "fxq.targets", entry).install(folder, module, code)


def test_a_target_of_a_script_is_found_by_its_name() -> None:
    target = fxq.register_target(Target("test_script", (LINEAR,)))
    assert fxq.get_target("test_script") is target
    recipe = fxq.recipe("test_script")
    assert recipe == fxq.Recipe(target="test_script") == fxq.Recipe.from_toml('target = "test_script"')
    assert 'target = "test_script"' in fxq.Recipe(target=target).to_toml()
    prepared = fxq.prepare(nn.Sequential(nn.Linear(4, 4)).eval(), torch.zeros(2, 4), "test_script")
    assert fxq.explain(prepared).target == "test_script"
    assert fxq.registered_targets()["test_script"].module == "test_register_target"


def test_the_same_target_may_be_registered_again_but_not_another_under_its_name() -> None:
    fxq.register_target(Target("test_twice", (LINEAR,)))
    fxq.register_target(Target("test_twice", (LINEAR,)))
    message = (
        "^the target name 'test_twice' is taken by module 'test_register_target', and module 'test_register_target' "
        "wants it too, for another target; rename one of them"
    )
    with pytest.raises(fxq.PluginError, match=message):
        fxq.register_target(Target("test_twice"))
    with pytest.raises(fxq.PluginError, match=r"'tensorrt' is taken by package 'fxq' \(fxq.targets.builtin\)"):
        fxq.register_target(Target("tensorrt"))
    with pytest.raises(
        fxq.PluginError, match=r"test_register_target registers 'x' as a target; it must be a fxq.Target"
    ):
        fxq.register_target("x")  # type: ignore[arg-type]


def test_an_unknown_target_is_an_error_that_suggests_one() -> None:
    with pytest.raises(fxq.TargetError, match=r"unknown target 'tensort'; did you mean 'tensorrt'\? There are onnx"):
        fxq.Recipe(target="tensort")


@pytest.mark.slow  # passes of one are found in tests/test_registry.py
def test_an_installed_package_brings_a_target_as_an_object_or_by_registering_it(tmp_path: Path) -> None:
    install("object-target", tmp_path, "x = fxq_test_object:TARGET", "fxq_test_object", AS_OBJECT.format(name="object"))
    code = AS_OBJECT.format(name="called") + "fxq.register_target(TARGET)\n"
    install("calling-target", tmp_path, "y = fxq_test_calls", "fxq_test_calls", code)
    printed = run_python(
        "import fxq\n"
        "print(fxq.recipe('object').target, fxq.get_target('called').name)\n"
        "found = fxq.registered_targets()\n"
        "print(found['object'].package, found['called'], sep='; ')\n"
        "from fxq.cli.main import app\n"
        "app(['targets', 'object'])\n",
        tmp_path,
    )
    assert printed.splitlines()[:3] == [
        "object called",
        "object-target; package 'calling-target' (fxq_test_calls)",
        'name = "object"',
    ]


@pytest.mark.slow  # a process of its own, like the ones around it
def test_the_example_is_found_once_a_sample_of_it_is_installed(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "examples/custom_target/fxq_qnn.py", tmp_path)
    install("fxq-qnn", tmp_path, "qnn = fxq_qnn:TARGET")
    assert run_python("import fxq; print(fxq.recipe('qnn').resolved_target.activation)", tmp_path) == (
        "uint16 affine per tensor\n"
    )


BROKEN = {
    "does not import": (
        "x = fxq_target_broken",
        "import no_such_module\n",
        "plugin 'x' (fxq_target_broken, of package broken-target) does not import: ModuleNotFoundError: No "
        "module named 'no_such_module'; fix or uninstall the package",
    ),
    "is wrong": (
        "x = fxq_target_wrong",
        "import fxq\nfxq.register_target(fxq.Target('wrong', (fxq.OpRule('lineer', inputs=True),)))\n",
        "plugin 'x' (fxq_target_wrong, of package broken-target) does not load: target 'wrong': "
        "ops[0].kinds: there is no kind 'lineer'; did you mean 'linear'?",
    ),
    "registers nothing": (
        "x = fxq_target_nothing",
        "",
        "plugin 'x' (fxq_target_nothing, of package broken-target) registers no target; the file imported is",
    ),
    "is no target": (
        "x = fxq_target_number:TARGET",
        "TARGET = 3\n",
        "plugin 'x' (fxq_target_number:TARGET, of package broken-target) does not load: fxq_target_number registers 3 "
        "as a target; it must be a fxq.Target",
    ),
    "takes a taken name": (
        "x = fxq_target_greedy:TARGET",
        AS_OBJECT.format(name="tensorrt"),
        "the target name 'tensorrt' is taken by package 'fxq' (fxq.targets.builtin), and package 'broken-target' "
        "(fxq_target_greedy) wants it too",
    ),
}


@pytest.mark.parametrize(("entry", "code", "message"), BROKEN.values(), ids=BROKEN)
def test_a_package_whose_target_does_not_load_is_an_error_that_names_it(
    entry: str, code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken-target", tmp_path, entry, entry.partition(" = ")[2].partition(":")[0], code)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # asking again does not help
        with pytest.raises(fxq.PluginError) as error:
            fxq.registered_targets()
        assert message in str(error.value)


@pytest.mark.slow  # a process of its own
def test_two_sample_packages_that_want_one_name_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("first-target", tmp_path, "a = fxq_test_first:TARGET", "fxq_test_first", AS_OBJECT.format(name="test_both"))
    code = "import fxq\nTARGET = fxq.Target('test_both')\n"
    install("second-target", tmp_path, "b = fxq_test_second:TARGET", "fxq_test_second", code)
    printed = run_python(
        "import fxq\ntry:\n    fxq.get_target('test_both')\nexcept fxq.PluginError as error:\n    print(error)\n",
        tmp_path,
    )
    assert (
        "the target name 'test_both' is taken by package 'first-target' (fxq_test_first), and package 'second-target' "
        "(fxq_test_second) wants it too, for another target"
    ) in printed
