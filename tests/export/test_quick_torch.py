"""What is spared torch.export and torch.onnx: less work, the same programs, and nothing is left behind."""

import inspect

import pytest
import torch
from onnxscript.values import Opset, TracedOnnxFunction
from torch import fx, nn
from torch._export import utils as export_utils
from torch._export.utils import _collect_all_valid_cia_ops
from torch.fx import config as fx_config
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fxq.export.quick_torch import quick_torch

op = Opset("", 18)
HAS_SWITCH = hasattr(fx_config, "do_not_emit_stack_traces")  # not in torch 2.11


def translated(x):  # type: ignore[no-untyped-def]
    return op.Relu(x)


def shared() -> tuple[object, ...]:
    """Return what it changes for the time being."""
    found = [
        vars(TracedOnnxFunction)["function_ir"],
        vars(ONNXRegistry)["from_torchlib"],
        export_utils._materialize_cpp_cia_ops,
        fx._lazy_graph_module._use_lazy_graph_module_flag,
    ]
    return (*found, fx_config.do_not_emit_stack_traces) if HAS_SWITCH else tuple(found)


def test_nothing_is_left_behind_an_error_neither() -> None:
    torch.export.export(nn.ReLU(), (torch.ones(2),))  # imports what is looked at
    before = shared()
    with quick_torch():
        assert all(now != then for now, then in zip(shared(), before, strict=True))
    assert shared() == before
    with pytest.raises(RuntimeError, match="half-way"), quick_torch():
        raise RuntimeError("half-way")
    assert shared() == before


def test_a_translation_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    function = TracedOnnxFunction(op, translated)
    with quick_torch():
        first = function.function_ir
    monkeypatch.setattr(inspect, "getsource", lambda *_: pytest.fail("read again"))
    with quick_torch():
        assert function.function_ir is first
    assert first.domain == function.opset.domain


def test_the_translations_are_gathered_once_and_each_export_may_add_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = torch.ops.aten.relu.default
    with quick_torch():
        first = ONNXRegistry().from_torchlib(opset_version=18)  # as torch.onnx.export calls it
        first.register_op(relu, translated)
    monkeypatch.setattr(ONNXRegistry, "_register", lambda *_: pytest.fail("gathered again"))
    with quick_torch():
        again = ONNXRegistry.from_torchlib(opset_version=18)
    assert again.opset_version == 18
    assert again.functions[relu.name()] == first.functions[relu.name()][1:]
    assert again.functions.keys() == first.functions.keys()


def test_composite_operators_are_those_of_torch_and_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, listed, materialize = _collect_all_valid_cia_ops(), [], export_utils._materialize_cpp_cia_ops
    monkeypatch.setattr(export_utils, "_materialize_cpp_cia_ops", lambda: (listed.append(1), materialize())[1])
    with quick_torch():
        assert _collect_all_valid_cia_ops() == expected
        assert _collect_all_valid_cia_ops() == expected
    assert len(listed) == 1


def test_code_is_written_for_fewer_graphs_and_still_when_one_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.ReLU(), nn.Flatten(0))
    written, write = [], fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", lambda gm: (written.append(gm), write(gm))[1])
    torch.export.export(model, (x,))
    before, written[:] = len(written), []
    with quick_torch():
        program = torch.export.export(model, (x,))
    assert len(written) < before
    assert not any(node.stack_trace for node in program.graph.nodes if HAS_SWITCH)
    torch.testing.assert_close(program.module()(x), x.relu().flatten())
    assert "relu" in program.graph_module.code
