from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.testing import assert_rewrites
from fxq_passes import FunctionalToModule, InsertQuantizers, PlanOps, PlanResidualAdds

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
PASSES = [FunctionalToModule(), PlanOps(), PlanResidualAdds(), InsertQuantizers()]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


def test_the_readers_of_one_tensor_share_its_quantizer() -> None:
    assert_rewrites(
        PASSES,
        model=nn.Sequential(nn.ReLU(), Block()),
        inputs=X,
        after="""
            input_1 = input
            _0 = ReLU[0](input_1)
            _1_conv_input_quantizer = TensorQuantizer[1.conv_input_quantizer](_0)
            _1_conv = QuantConv2d[1.conv](_1_conv_input_quantizer)  # input 0: int8 per tensor
            add = add(_1_conv, _1_conv_input_quantizer)  # input 1: int8 per tensor (residual)
            return add
        """,
    )


def test_a_reader_in_float_reads_the_float_tensor() -> None:
    class Net(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * torch.sigmoid(x)

    assert_rewrites(
        PASSES,
        model=Net(),
        inputs=X,
        after="""
            x = input
            conv_input_quantizer = TensorQuantizer[conv_input_quantizer](x)
            conv = QuantConv2d[conv](conv_input_quantizer)  # input 0: int8 per tensor
            sigmoid = Sigmoid[sigmoid](x)
            mul = mul(conv, sigmoid)
            return mul
        """,
    )


class Unary(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


@pytest.mark.parametrize(
    ("name", "body"),
    [("add", lambda x: x + x), ("mul", lambda x: x * x), ("matmul", lambda x: x @ x)],
)
def test_a_tensor_that_one_node_reads_twice_is_quantized_at_both_readings(name: str, body: Any) -> None:
    before, behind = f"{name}_input_quantizer", f"{name}_output_quantizer"
    is_float = name == "matmul"  # whose kernel gives floats, where nothing reads codes
    places = ("input 0", "input 1") if is_float else ("input 0", "input 1", "output")
    plans = "; ".join(f"{place}: uint8 affine per tensor" for place in places)
    quantized = (
        f"return {name}" if is_float else f"{behind} = TensorQuantizer[{behind}]({name})\n        return {behind}"
    )
    after = f"""
        x = input
        {before} = TensorQuantizer[{before}](x)
        {name} = {name}({before}, {before})  # {plans}
        {quantized}
    """
    assert_rewrites(PASSES, model=Unary(body), inputs=X, target="onnxruntime", after=after)


class ShareBoth(fxq.Pass):
    """Plan the two inputs of an add with different descriptors, and one range for both."""

    stage = fxq.Stage.PLANNED
    name = "share_both"

    def run(self, rw: fxq.Rewriter) -> None:
        (add,) = rw.nodes(lambda node: node.name == "add")
        for position, calibrator in enumerate(("max", "histogram")):
            rw.plan_input(add, position, fxq.QuantDescriptor(calibrator=calibrator), "a test")
        rw.share_range(add.all_input_nodes, "both", "a test")


def test_one_range_for_two_descriptors_is_refused() -> None:
    model = Unary(lambda x: torch.relu(x) + torch.sigmoid(x))
    with pytest.raises(fxq.PassError, match=r"'sigmoid' is to share one range with what .* quantizes.*plan them alike"):
        assert_rewrites([ShareBoth(), InsertQuantizers()], model=model, inputs=X, after="")


def test_one_argument_of_two_may_be_planned() -> None:
    class Once(fxq.Pass):
        """Plan the second reading of x alone."""

        stage = fxq.Stage.PLANNED
        name = "once"

        def run(self, rw: fxq.Rewriter) -> None:
            for node in rw.nodes(lambda node: node.name == "add"):
                rw.plan_input(node, 1, fxq.QuantDescriptor(), "a test")

    assert_rewrites(
        [Once(), InsertQuantizers()],
        model=Unary(lambda x: x + x),
        inputs=X,
        after="""
            x = input
            add_input_quantizer = TensorQuantizer[add_input_quantizer](x)
            add = add(x, add_input_quantizer)  # input 1: int8 per tensor
            return add
        """,
    )


def test_a_module_called_twice_gets_its_own_quantizer_at_each_call() -> None:
    layer = nn.Conv2d(4, 4, 1)
    prepared = fxq.prepare(nn.Sequential(layer, nn.ReLU(), layer).eval(), X)
    fxq.calibrate(prepared, [X], progress=False)
    first, second = prepared.get_submodule("0_input_quantizer"), prepared.get_submodule("0_input_quantizer_1")
    assert isinstance(first, fxq.TensorQuantizer)
    assert isinstance(second, fxq.TensorQuantizer)
    torch.testing.assert_close(first.amax, X.abs().max(), rtol=0, atol=0)
    torch.testing.assert_close(second.amax, layer(X).relu().max().detach(), rtol=1e-6, atol=0)


def test_outputs_in_tuples_and_dicts_are_quantized() -> None:
    class Several(Block):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return {"first": y, "rest": (x, [y])}

    prepared = fxq.prepare(Several().eval(), X, recipe="onnxruntime")
    returned = "{'first': conv_output_quantizer, 'rest': (x, [conv_output_quantizer])}"
    assert str(prepared.graph.output_node().args[0]) == returned


def test_a_shape_is_read_from_the_float_tensor() -> None:
    class Asks(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.conv(x).reshape(x.shape[0], -1, x.size(2))

    prepared = fxq.prepare(Asks().eval(), X, recipe="onnxruntime")
    asking = [node for node in prepared.graph.nodes if node.target in (getattr, "size")]
    assert [str(node.args[0]) for node in asking] == ["conv", "conv"]


def test_two_runs_give_the_same_names() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(144, 3)).eval()
    first, second = (fxq.prepare(model, X) for _ in range(2))
    assert [path for path, _ in first.named_modules()] == [path for path, _ in second.named_modules()]
    assert [name for name, _ in first.named_parameters()] == [name for name, _ in second.named_parameters()]
    assert str(first.graph) == str(second.graph)


def test_a_name_that_the_model_uses_is_not_taken() -> None:
    class Clash(Block):
        def __init__(self) -> None:
            super().__init__()
            self.conv_input_quantizer = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv_input_quantizer(x))

    prepared = fxq.prepare(Clash().eval(), X)
    assert isinstance(prepared.get_submodule("conv_input_quantizer"), nn.ReLU)
    assert isinstance(prepared.get_submodule("conv_input_quantizer_1"), fxq.TensorQuantizer)
