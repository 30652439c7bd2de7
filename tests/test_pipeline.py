from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.settings import Settings
from fxq.graph.trace import trace
from fxq.number_check import NumberCheck
from fxq.pipeline import run_passes
from fxq.record import Record

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU()).eval()


class Step(fxq.Pass):
    """Base of the passes below, which each do one thing wrong."""

    stage = fxq.Stage.NORMALIZED

    def run(self, rw: fxq.Rewriter) -> None:
        pass


class DropsRelu(Step):
    name = "drops_relu"

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.target == "2"):
            rw.bypass(node, "nobody will notice")


class HonestDropsRelu(DropsRelu):
    name = "honest"
    tolerance: ClassVar[fxq.Tolerance] = fxq.ANY


class Raises(Step):
    name = "raises"

    def run(self, rw: fxq.Rewriter) -> None:
        raise KeyError("lost")


class RaisesOurs(Step):
    name = "raises_ours"

    def run(self, rw: fxq.Rewriter) -> None:
        fxq.QuantDescriptor(num_bits=99)


class ChangesDtype(Step):
    name = "changes_dtype"

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.target == "1"):
            rw.call_instead(node, "double", node.args, {}, "wider")
        rw.gm.get_submodule("0")


class BreaksModule(Step):
    name = "breaks_module"

    def run(self, rw: fxq.Rewriter) -> None:
        rw.nodes(lambda node: node.target == "2")[0].target = "gone"


class DropsIdentity(Step):
    name = "drops_identity"

    def run(self, rw: fxq.Rewriter) -> None:
        for node in rw.nodes(lambda node: node.target == "1"):
            rw.bypass(node, "it does nothing")


def run(*steps: fxq.Pass, verify: bool = True, complete: bool = False, x: Tensor | None = X) -> Record:
    record = Record()
    gm = trace(net(), None if x is None else (x,))
    settings = Settings(fxq.get_target("tensorrt"), example_inputs=None if x is None else (x,))
    numbers = NumberCheck((x,)) if verify else None
    run_passes(gm, steps, settings, record, numbers, complete)
    return record


def test_verify_names_the_first_pass_that_changes_numbers_it_promised_to_keep() -> None:
    message = (
        r"^pass 'drops_relu' \(test_pipeline.DropsRelu\), run after drops_identity, changed 'output' by up to .* LSB"
        r".*, and promises ROUNDING; mend it, or declare `tolerance = fxq.ANY`"
    )
    with pytest.raises(fxq.PassError, match=message):
        run(DropsIdentity(), DropsRelu())


def test_without_verify_nothing_is_run() -> None:
    run(DropsRelu(), verify=False, x=None)


def test_a_pass_that_says_it_changes_numbers_may() -> None:
    assert [entry.text for entry in run(HonestDropsRelu()).of("honest")] == ["nobody will notice"]


def test_a_change_of_dtype_is_a_change() -> None:
    with pytest.raises(fxq.PassError, match=r"changed 'output' from torch.float32 \(2, 4\) to torch.float64 \(2, 4\)"):
        run(ChangesDtype())


def test_infinities_and_nan_that_were_there_before_are_no_change() -> None:
    gm = trace(nn.Sequential(nn.Identity()).eval(), (X,))
    x = torch.tensor([[float("inf"), float("nan"), 1.0, -float("inf")]])
    settings = Settings(fxq.get_target("tensorrt"), example_inputs=(x,))
    record = Record()
    run_passes(gm, [Step()], settings, record, NumberCheck((x,)), complete=False)
    assert len(record.passes) == 1  # it was not refused


def test_verify_without_example_inputs_is_an_error_with_the_cure() -> None:
    with pytest.raises(fxq.PassError, match=r"give prepare\(\) example_inputs"):
        fxq.prepare(net(), verify=True)


def test_a_pass_that_raises_is_named() -> None:
    with pytest.raises(fxq.PassError, match=r"^pass 'raises' \(test_pipeline.Raises\) failed after tracing: KeyError"):
        run(Raises())


def test_an_error_of_fxq_keeps_its_type_and_names_the_pass_in_a_note() -> None:
    with pytest.raises(fxq.DescriptorError, match="num_bits must be from 2 to 16") as error:
        run(RaisesOurs())
    assert error.value.__notes__ == ["raised by pass 'raises_ours' (test_pipeline.RaisesOurs), run after tracing"]


def test_a_pass_that_breaks_the_graph_is_named_with_the_rule() -> None:
    with pytest.raises(
        fxq.PassError, match=r"^pass 'breaks_module' .* breaks the rules of stage 'normalized'.*gone"
    ) as error:
        run(BreaksModule())
    assert "\n" not in str(error.value)  # FX shows the whole graph behind it


def test_a_rule_that_was_broken_before_is_not_the_next_passs_fault_but_must_be_mended_in_the_end() -> None:
    run(Step())  # the identity is still there, and Step did not put it there
    message = (
        r"still breaks the rules of stage 'normalized': node '_1' is an identity, which does nothing here: bypass it; "
        r"the recipe lacks a pass that mends it"
    )
    with pytest.raises(fxq.PassError, match=message):
        run(Step(), complete=True)
    run(DropsIdentity(), complete=True)


def test_the_record_holds_what_the_rewriter_did() -> None:
    record = run(DropsIdentity(), verify=False)
    (entry,) = record.entries
    assert (entry.pass_name, entry.action, entry.node, entry.path) == ("drops_identity", "edit", "_1", "1")
    assert str(entry) == "drops_identity: 1: it does nothing"
    assert record.passes == ["drops_identity"]


def test_a_pass_that_did_nothing_leaves_no_entry() -> None:
    assert run(Step(), verify=False).entries == []


def test_verify_does_not_write_into_the_users_example_inputs() -> None:
    x = X.clone()
    fxq.prepare(nn.Sequential(nn.ReLU(inplace=True)).eval(), x, verify=True)
    assert torch.equal(x, X)


def test_verify_passes_for_the_built_in_passes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten())
    fxq.prepare(model.eval(), torch.randn(2, 3, 8, 8), verify=True)
    fxq.prepare(model.half().eval(), torch.randn(2, 3, 8, 8).half(), verify=True)
