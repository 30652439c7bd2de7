"""Programs after run_decompositions(): the operators below those that modules call are the same layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.up, self.gn = nn.ConvTranspose2d(8, 4, 2, 2, groups=2, output_padding=1), nn.GroupNorm(2, 4)
        self.ln, self.fc = nn.LayerNorm(4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.max_pool2d(self.gn(self.up(x)), 3, 2)
        x = self.fc(self.ln(x.flatten(2).transpose(1, 2)))
        return F.softmax(x, -1)


def layers(program: torch.export.ExportedProgram, recipe: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return what each operation is, and what is quantized of it; not what only moves data."""
    explained = fxq.explain(fxq.prepare(program, X, recipe, verify=True))
    moves = ("reshape", "transpose", "slice")
    return [
        (node.kind, tuple(one.role for one in node.quantized)) for node in explained.nodes if node.kind not in moves
    ]


@pytest.mark.parametrize("recipe", ["tensorrt", "onnxruntime"])
def test_a_decomposed_program_is_prepared_like_the_program(recipe: str) -> None:
    program = torch.export.export(Net().eval(), (X,))
    found = layers(program.run_decompositions(), recipe)
    assert found == layers(program, recipe)
    kinds = [kind for kind, _ in found]
    assert kinds[:8] == ["conv", "relu", "conv_transpose", "group_norm", "max_pool", "layer_norm", "linear", "softmax"]


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks_are_known_too(rank: int) -> None:
    conv = (nn.Conv1d, nn.Conv3d)[rank == 3](2, 4, 3, dilation=2, padding="same", bias=False)
    x = torch.randn(2, 2, *[6] * rank, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(nn.Sequential(conv).eval(), (x,)).run_decompositions()
    coverage = fxq.explain(fxq.prepare(program, x, verify=True)).coverage
    assert (len(coverage.quantized), coverage.total) == (1, 1)


class Indices(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, 2, return_indices=True)  # type: ignore[return-value]


def test_an_operator_whose_other_results_are_read_stays_whole() -> None:
    program = torch.export.export(Indices(), (X,)).run_decompositions()
    with pytest.warns(UserWarning, match="nothing"):
        prepared = fxq.prepare(program, X)
    for found, expected in zip(prepared(X), Indices()(X), strict=True):
        torch.testing.assert_close(found, expected)
