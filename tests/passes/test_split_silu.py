from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph import graph_text
from fxq.graph.trace import trace
from fxq.runtimes import count_kinds, get_runtime
from fxq.testing import assert_rewrites
from fxq_passes import SplitSilu

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with one activation module, called as ``head`` says."""

    def __init__(self, head: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.last, self.act, self.norm = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 1),
            nn.SiLU(),
            nn.GroupNorm(2, 4),
        )
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, x)


def chain(model: Net, x: Tensor) -> Tensor:
    return model.act(model.last(model.act(model.conv(x))))


def test_silu_behind_a_convolution_becomes_a_product() -> None:
    model = Net(chain)
    assert_rewrites(
        [SplitSilu()],
        model=model,
        inputs=X,
        target="onnxruntime",
        before="""
            x = input
            conv = Conv2d[conv](x)
            act = SiLU[act](conv)
            last = Conv2d[last](act)
            act_1 = SiLU[act](last)
            return act_1
        """,
        after="""
            x = input
            conv = Conv2d[conv](x)
            sigmoid = Sigmoid[act_sigmoid](conv)
            act = mul(conv, sigmoid)
            last = Conv2d[last](act)
            sigmoid_1 = Sigmoid[act_sigmoid_1](last)
            act_1 = mul(last, sigmoid_1)
            return act_1
        """,
    )
    assert not list(model.act.children())  # the user's module


@pytest.mark.parametrize(
    ("head", "rules", "why"),
    [
        (lambda m, x: m.last(m.act(m.norm(m.conv(x)))), (), "no convolution writes its input in integers"),
        (lambda m, x: m.norm(m.act(m.conv(x))), (), "what reads it computes in float, and would keep the product in "),
        (lambda m, x: m.norm(m.act(m.conv(x)) + m.last(m.conv(x))), (), "what reads it computes in float"),
        (lambda m, x: m.act(m.conv(x)), (("conv", None),), "a rule leaves it, or the convolution before it, in float"),
        (lambda m, x: m.act(m.conv(x)), (("act", None),), "a rule leaves it, or the convolution before it, in float"),
    ],
    ids=["norm", "read by a norm", "read by a sum", "rule for the conv", "rule for it"],
)
def test_elsewhere_silu_stays(
    head: Callable[[Net, Tensor], Tensor], rules: tuple[tuple[str, None], ...], why: str
) -> None:
    model = Net(head)
    text = graph_text(trace(model.eval(), (X,)))
    record = assert_rewrites([SplitSilu()], model=model, inputs=X, target="onnxruntime", rules=rules, after=text)
    assert any(entry.text.startswith(why) for entry in record.skipped("act"))


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_target_that_fuses_silu_keeps_it(target: str) -> None:
    text = graph_text(trace(Net(chain).eval(), (X,)))
    assert_rewrites([SplitSilu()], model=Net(chain), inputs=X, target=target, after=text)


def test_onnxruntime_computes_it_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    converted = fxq.quantize(Net(chain).eval(), [X], "onnxruntime", progress=False)
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    found = count_kinds(get_runtime("onnxruntime").executed_ops(tmp_path / "model.onnx"))
    assert {kind: found[kind] for kind in ("QLinearConv", "QLinearSigmoid", "QLinearMul", "Sigmoid", "Mul")} == {
        "QLinearConv": 2, "QLinearSigmoid": 2, "QLinearMul": 2, "Sigmoid": 0, "Mul": 0,
    }  # fmt: skip
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert report.quality is not None
    assert report.quality.sqnr_db > 30


def test_it_trains_as_silu_does() -> None:
    torch.manual_seed(0)
    model = Net(chain)
    prepared = fxq.prepare(model.eval(), X, "onnxruntime", qat=True)
    fxq.calibrate(prepared, [X], progress=False)
    prepared.train()(X).square().sum().backward()
    model.train()(X).square().sum().backward()
    have, want = prepared.get_parameter("conv.weight").grad, model.conv.weight.grad
    assert have is not None
    assert want is not None
    assert torch.cosine_similarity(have.flatten(), want.flatten(), dim=0) > 0.98
