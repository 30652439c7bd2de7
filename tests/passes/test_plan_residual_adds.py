from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.graph import planned_inputs
from fxq.graph.settings import Settings
from fxq.graph.trace import trace
from fxq.pipeline import run_passes
from fxq.record import Record
from fxq.testing import assert_rewrites
from fxq_passes import FunctionalToModule, InsertQuantizers, PlanOps, PlanResidualAdds, RemoveInplace

X = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(stride: int = 1, channels: int = 8) -> nn.Conv2d:
    return nn.Conv2d(8, channels, 3, stride=stride, padding=1)


class FloatFunctional(nn.Module):
    """An add as a module with a method, as torch's eager quantization wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Identity()

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self.after(torch.add(x, y))  # type: ignore[no-any-return]


Add = Callable[[Tensor, Tensor], Tensor]


def augmented(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


class Block(nn.Module):
    """``join(body(x), skip(x))``; each part can be replaced."""

    def __init__(self, body: nn.Module | None = None, skip: nn.Module | None = None, join: Any = None) -> None:
        super().__init__()
        self.body = body or nn.Sequential(conv(), nn.ReLU(), conv())
        self.skip = skip or nn.Identity()
        self.functional = FloatFunctional()
        self.join: Add = join or (lambda x, y: x + y)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1  # not a graph input
        return self.join(self.body(x), self.skip(x))


def planned(model: nn.Module, inputs: tuple[Tensor, ...] | None = (X,), rules: tuple[Any, ...] = ()) -> dict[str, str]:
    """Return which tensor is planned as residual at which node, or why none is."""
    gm = trace(model.eval(), inputs)
    record = Record()
    settings = Settings(fxq.get_target("tensorrt"), rules=tuple(fxq.Rule(*rule) for rule in rules))
    run_passes(gm, [RemoveInplace(), FunctionalToModule()], settings, record, complete=False)
    run_passes(gm, [PlanOps(), PlanResidualAdds()], settings, record, complete=False)
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        for position, plan in planned_inputs(node).items():
            if plan.pass_name == "plan_residual_adds":
                found[f"{node.name} {plan.role}"] = str(list(node.all_input_nodes)[position])
    found |= {entry.node: entry.text for entry in record.of("plan_residual_adds", "skip")}
    return found


def test_only_the_skip_branch_is_planned() -> None:
    record = assert_rewrites(
        [PlanOps(), PlanResidualAdds(), InsertQuantizers()],
        model=Block(),
        inputs=X,
        before="""
            x = input
            mul = mul(x, 1)
            body_0 = Conv2d[body.0](mul)
            body_1 = ReLU[body.1](body_0)
            body_2 = Conv2d[body.2](body_1)
            skip = Identity[skip](mul)
            add = add(body_2, skip)
            return add
        """,
        after="""
            x = input
            mul = mul(x, 1)
            body_0_input_quantizer = TensorQuantizer[body.0_input_quantizer](mul)
            body_0 = QuantConv2d[body.0](body_0_input_quantizer)  # input 0: int8 per tensor
            body_1 = ReLU[body.1](body_0)
            body_2_input_quantizer = TensorQuantizer[body.2_input_quantizer](body_1)
            body_2 = QuantConv2d[body.2](body_2_input_quantizer)  # input 0: int8 per tensor
            skip = Identity[skip](mul)
            add_residual_quantizer = TensorQuantizer[add_residual_quantizer](skip)
            add = add(body_2, add_residual_quantizer)  # input 1: int8 per tensor (residual)
            return add
        """,
    )
    assert record.of("plan_residual_adds", "plan")[0].text.endswith("residual input of an add that body_2 absorbs")


SPELLINGS: dict[str, Any] = {
    "a + b": lambda x, y: x + y,
    "b + a": lambda x, y: y + x,
    "a += b": augmented,
    "torch.add": torch.add,
    "torch.add by keyword": lambda x, y: torch.add(input=x, other=y),
    "torch.add alpha 1": lambda x, y: torch.add(x, y, alpha=1),
    "a.add(b)": lambda x, y: x.add(y),
    "a.add_(b)": lambda x, y: x.add_(y),
    "operator.iadd": __import__("operator").iadd,
    "torch.add on views": lambda x, y: x.contiguous() + y,
}


@pytest.mark.parametrize("join", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("inputs", [(X,), None], ids=["shapes", "no shapes"])
def test_every_spelling_of_an_add_is_one(join: Any, inputs: tuple[Tensor, ...] | None) -> None:
    (entry,) = planned(Block(skip=nn.ReLU(), join=join), inputs).items()
    assert entry[0].endswith(" residual")
    assert entry[1] == "skip"


def test_a_module_that_adds_is_an_add_too() -> None:
    block = Block(skip=nn.ReLU())
    block.join = block.functional.add
    assert planned(block) == {"add residual": "skip"}


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 0.5).transpose(2, 3) / 2


BODIES: dict[str, nn.Module] = {
    "bn": nn.Sequential(conv(), nn.BatchNorm2d(8)),
    "activation": nn.Sequential(conv(), nn.SiLU(), nn.ReLU6()),
    "scaling and copies": nn.Sequential(conv(), Scaled()),
    "transposed": nn.Sequential(nn.ConvTranspose2d(8, 8, 3, padding=1)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_walk_to_the_convolution_crosses_what_runs_in_its_epilogue(body: nn.Module) -> None:
    assert planned(Block(body, skip=nn.ReLU())) == {"add residual": "skip"}


class BothSides(nn.Module):
    """A down-sample block: both sides of the add end in a convolution."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*[conv() for _ in range(first)])
        self.second = nn.Sequential(*[conv() for _ in range(second)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    ("first", "second", "residual"),
    [
        pytest.param(2, 1, "second_0", id="first is longer"),
        pytest.param(1, 2, "first_0", id="second is longer"),
        pytest.param(1, 1, "first_0", id="on a tie the second input is the convolution's side"),
    ],
)
def test_the_longer_side_is_the_convolutions(first: int, second: int, residual: str) -> None:
    assert planned(BothSides(first, second)) == {"add residual": residual}


class LayerScale(nn.Module):
    """ConvNeXt: the convolution's output is scaled and added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = conv(), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.gamma * torch.relu(x)


class AddsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.position = conv(), nn.Parameter(torch.ones(1, 8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.position


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y + torch.relu(x), y


NO_CONVOLUTION = "no input comes from a convolution that only this add reads"
NONE: dict[str, tuple[nn.Module, str]] = {
    "same producer": (Block(join=lambda x, y: x + x), "both inputs are the same tensor"),
    "parameter": (AddsParameter(), "one input is a parameter or constant"),
    "layer scale": (LayerScale(), NO_CONVOLUTION),
    "no convolution": (Block(nn.ReLU(), nn.Sigmoid()), NO_CONVOLUTION),
    "linear": (Block(nn.Linear(8, 8), nn.Sigmoid()), NO_CONVOLUTION),
    "pooling between": (Block(nn.Sequential(conv(), nn.MaxPool2d(1)), nn.Sigmoid()), NO_CONVOLUTION),
    "another reader": (ReadTwice(), NO_CONVOLUTION),
    "broadcast": (Block(skip=nn.AdaptiveAvgPool2d(1)), "its inputs broadcast: (2, 8, 8, 8) and (2, 8, 1, 1)"),
}


@pytest.mark.parametrize(("model", "why"), NONE.values(), ids=NONE)
def test_an_add_that_no_convolution_absorbs_is_left_alone(model: nn.Module, why: str) -> None:
    assert planned(model) == {"add": why}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, y: Tensor, convolve: bool = True) -> Tensor:
        return (self.conv(x) if convolve else x) + y


def test_a_graph_input_is_a_residual_only_where_a_convolution_absorbs_the_add() -> None:
    assert planned(TwoInputs(), (X, X)) == {"add residual": "y"}
    assert planned(TwoInputs(), (X, X, False)) == {"add": NO_CONVOLUTION}  # type: ignore[arg-type]


def test_broadcasting_over_the_batch_is_allowed() -> None:
    assert planned(TwoInputs(), (X, X[:1])) == {"add residual": "y"}


def test_a_number_is_no_residual() -> None:
    assert planned(Block(join=lambda x, y: x + 1)) == {}


def test_a_max_pool_on_the_residual_branch_gets_a_quantizer_of_its_own() -> None:
    body = nn.Sequential(conv(stride=2))
    assert planned(Block(body, nn.MaxPool2d(2))) == {"skip input": "mul", "add residual": "skip"}


class PooledTrunk(nn.Module):
    """The stem of ResNet-18: the pooled tensor feeds the block's convolution and its skip."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x * 1)
        return self.conv(x) + x


def test_a_max_pool_that_the_block_reads_too_gets_none() -> None:
    assert planned(PooledTrunk()) == {"add residual": "pool"}


def test_a_rule_leaves_an_add_or_its_convolution_in_float() -> None:
    assert planned(Block(), rules=(("add", None),)) == {"add": "rule ('add', None) leaves it in float"}
    assert planned(Block(), rules=(("body.2", None),)) == {"add": NO_CONVOLUTION}


def test_a_target_without_fused_adds_plans_nothing() -> None:
    prepared = fxq.prepare(Block().eval(), X, recipe="openvino")
    assert "residual" not in fxq.explain(prepared).counts


def test_a_block_called_twice_is_planned_at_each_call() -> None:
    block = Block(skip=nn.ReLU())
    assert planned(nn.Sequential(block, block)) == {"add residual": "_0_skip", "add_1 residual": "_0_skip_1"}


@pytest.mark.parametrize(
    ("name", "inputs", "weights", "residuals"),
    [("resnet18", 21, 21, 8), ("resnet34", 37, 37, 16), ("resnet50", 54, 54, 16), ("resnet101", 105, 105, 33)],
)
@pytest.mark.parametrize("size", [None, 32], ids=["no shapes", "shapes"])
def test_a_resnet_gets_the_counts_of_nvidias_hand_edited_model(
    name: str, inputs: int, weights: int, residuals: int, size: int | None
) -> None:
    model = torchvision.models.get_model(name).eval()
    prepared = fxq.prepare(model, None if size is None else torch.zeros(1, 3, size, size))
    assert fxq.explain(prepared).counts == {"input": inputs, "weight": weights, "residual": residuals}


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d, self.e = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        return self.d(F.relu(self.c(x))).view(batch, 4, -1) + self.e(x).view(batch, 4, -1)


class Scaled(Downsample):
    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(x))) * self.gamma.view(1, -1, 1, 1) + x


@pytest.mark.parametrize("model", [Downsample(), Scaled()], ids=["a-size-both-sides-use", "a-reshaped-scale"])
def test_neither_sizes_nor_reshaped_parameters_hide_the_convolution(model: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    explained = fxq.explain(fxq.prepare(model.eval(), x))
    assert [tensor.position for tensor in explained["add"].quantized if tensor.role == "residual"] == [1]


def test_a_convolution_that_stays_in_float_absorbs_nothing() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    recipe = fxq.recipe("tensorrt").with_pass_options("plan_ops", min_channels=16)
    assert fxq.explain(fxq.prepare(Scaled().eval(), x, recipe)).counts == {}
