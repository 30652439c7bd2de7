"""What fxq runs for its user calls sys.exit, or raises what is no Exception: an error that names it, not silence."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.installed import Package
from torch import Tensor, nn

import fxq
from fxq.cli.models import ModelSource, load_model
from fxq.quant.registry import find_fit

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Stop(BaseException):
    """As asyncio's or a debugger's own."""


EXITS = {"sys.exit": SystemExit(3), "another": Stop("enough")}


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "class Stop(BaseException): ...\nraise Stop"])
@pytest.mark.parametrize("group", ["fxq.passes", "fxq.targets", "fxq.fits"])
def test_a_plugin_that_exits_while_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, group: str
) -> None:
    Package("exiting-plugin", group, "exiting = fxq_test_exiting:found").install(tmp_path, "fxq_test_exiting", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fxq_test_exiting", raising=False)
    load = (lambda: find_fit("exiting")) if group == "fxq.fits" else fxq.registered_targets
    with pytest.raises(fxq.PluginError, match=r"'exiting' \(fxq_test_exiting:found, of package exiting-plugin\)"):
        load()


@pytest.mark.parametrize("error", EXITS.values(), ids=EXITS)
def test_a_pass_is_named(error: BaseException) -> None:
    @fxq.register_pass("test_exits")
    @dataclass(frozen=True)
    class Exits(fxq.Pass):
        stage = fxq.Stage.NORMALIZED
        at_once: bool = False

        def __post_init__(self) -> None:
            if self.at_once:
                raise error

        def run(self, rw: fxq.Rewriter) -> None:
            raise error

    with pytest.raises(fxq.PassError, match=f"pass 'test_exits' .* failed .*{type(error).__name__}: {error}"):
        fxq.prepare(nn.Linear(4, 4).eval(), recipe=fxq.recipe("tensorrt").with_pass("test_exits"))
    with pytest.raises(fxq.RecipeError, match="pass 'test_exits' refuses its options"):
        fxq.recipe("tensorrt").with_pass("test_exits", at_once=True)


@pytest.mark.parametrize("error", EXITS.values(), ids=EXITS)
def test_a_predicate_of_a_rule_is_an_error(error: BaseException) -> None:
    with pytest.raises(fxq.PassError, match=f"{type(error).__name__}: {error}"):
        fxq.prepare(nn.Linear(4, 4).eval(), recipe=fxq.recipe("tensorrt").with_rules((raising(error), None)))


class Ends(nn.Module):
    def __init__(self, error: BaseException, calls: int = 0) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.__dict__["error"], self.calls = error, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return self.fc(x)


@pytest.mark.parametrize("error", EXITS.values(), ids=EXITS)
def test_a_model_is_named(error: BaseException) -> None:
    with pytest.raises(fxq.TraceError, match=f"Ends.*{type(error).__name__}: {error}"):
        fxq.prepare(Ends(error).eval())
    with pytest.raises(fxq.InputError, match=f"Ends.*{type(error).__name__}: {error}"):
        fxq.prepare(Ends(error).eval(), X)
    model = nn.Linear(4, 4).eval()
    model.__deepcopy__ = raising(error)  # type: ignore[method-assign]
    with pytest.raises(fxq.TraceError, match=f"Linear.* cannot be copied: {type(error).__name__}: {error}"):
        fxq.prepare(model, X)


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "import sys\ndef make(): sys.exit(0)"], ids=["import", "call"]
)
def test_a_module_that_the_command_line_names_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "net_that_exits.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net_that_exits", raising=False)
    with pytest.raises(fxq.ModelError, match=r"net_that_exits.* failed: SystemExit: 0"):
        load_model(ModelSource("net_that_exits:make"))


def test_ctrl_c_ends_what_runs() -> None:
    with pytest.raises(KeyboardInterrupt):
        fxq.prepare(Ends(KeyboardInterrupt()).eval(), X)
    with pytest.raises(KeyboardInterrupt):
        fxq.prepare(
            nn.Linear(4, 4).eval(), recipe=fxq.recipe("tensorrt").with_rules((raising(KeyboardInterrupt()), None))
        )
