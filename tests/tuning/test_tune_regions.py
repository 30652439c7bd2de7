"""What tune proposes: kinds of operations, regions by a profile, and which group a runtime's operation belongs to."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.graph.groups import Group, find_groups
from fxq.runtimes import OpTime
from fxq.targets import TARGETS
from fxq.tuning.regions import GroupTimes, halves, kinds_in_float, regions_in_float, runs_of, times_of_groups

X = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """A depthwise convolution, a product and two adds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.act = nn.GELU()
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act(self.depthwise(x)) + x)
        return y + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.stem, self.narrow = Block(64), nn.Conv2d(64, 16, 1), Block(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.stem(self.wide(x))).flatten(2)
        return y @ y.transpose(1, 2)


@pytest.fixture(scope="module")
def gm() -> torch.fx.GraphModule:
    return fxq.prepare(Net().eval(), X, "onnxruntime")


@pytest.fixture(scope="module")
def groups(gm: torch.fx.GraphModule) -> list[Group]:
    return find_groups(gm, TARGETS["onnxruntime"])


def test_kinds_that_integer_kernels_are_bad_at_are_proposed(groups: list[Group]) -> None:
    depthwise, narrow, elementwise, products = (
        {groups[index].path for index in candidate.in_float} for candidate in kinds_in_float(groups)
    )
    assert depthwise == {"wide.depthwise", "narrow.depthwise"}
    assert narrow == depthwise | {"narrow.project"}  # the stem reads 64 channels
    assert elementwise == {"wide.add", "wide.add_1", "narrow.add_2", "narrow.add_3", "matmul"}
    assert products == {"matmul"}


def test_each_operation_of_a_profile_belongs_to_a_group(gm: torch.fx.GraphModule, groups: list[Group]) -> None:
    names = {
        "Transpose": "wide.depthwise",  # before all others
        "wide.depthwise_input_quantizer/QuantizeLinear": "wide.depthwise",
        "wide.depthwise/Conv_token_1": "wide.depthwise",
        "wide.act/Mul/GeluFusion/": "wide.depthwise",  # no group of its own
        "wide/Add": "wide.add",
        "wide.project/Conv/WithoutBiases": "wide.project",
        "ReorderOutput_token_3": "wide.project",  # where it stands
        "wide/Add_1_quant": "wide.add_1",
        "stem.weight/DequantizeLinear": "stem",
        "narrow.project/Conv": "narrow.project",
        "narrow/Add_3": "narrow.add_3",
        "matmul/MatMul": "matmul",
        "nobody.knows/Add": "matmul",
    }
    ops = [OpTime(name, 2.0**index) for index, name in enumerate(names)]
    found = times_of_groups(gm, groups, ops)
    expected = dict.fromkeys((group.path for group in groups), 0.0)
    for op, path in zip(ops, names.values(), strict=True):
        expected[path] += op.ms
    assert dict(zip((group.path for group in groups), found, strict=True)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_the_cheapest_of_all_choices(seed: int) -> None:
    """Against a search through all of them."""
    random = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed)).tolist()
    times = GroupTimes(*map(tuple, random))
    total = min(map(sum, random))
    for candidate, share in zip(regions_in_float(times), (0.0, 0.002, 0.01, 0.05), strict=True):

        def cost(kinds: tuple[int, ...], share: float = share) -> float:
            changes = sum(one != other for one, other in itertools.pairwise(kinds))
            return sum(random[kind][index] for index, kind in enumerate(kinds)) + share * total * changes

        best = min(itertools.product((0, 1), repeat=9), key=cost)
        assert candidate.in_float == {index for index, kind in enumerate(best) if kind}


def test_runs_are_regions_of_one_type() -> None:
    assert runs_of(frozenset({1, 2, 5}), 6) == [range(1), range(1, 3), range(3, 5), range(5, 6)]
    assert runs_of(frozenset(), 3) == [range(3)]


def test_a_region_is_cut_where_the_outermost_module_ends(groups: list[Group]) -> None:
    first, second = halves(range(len(groups)), groups)
    assert groups[first[-1]].path == "stem"
    assert groups[second.start].path == "narrow.depthwise"
    first, second = halves(range(1, 6), groups)  # nearer the middle a block would be cut
    assert groups[second.start].path == "stem"
    assert halves(range(2), groups) == (range(1), range(1, 2))
