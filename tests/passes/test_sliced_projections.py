"""One projection whose slices are queries, keys and values: one quantizer in front of them on TensorRT."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxq
from fxq.runtimes import get_runtime, traffic_mb

X = torch.randn(1, 17, 96, generator=torch.Generator().manual_seed(0))
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(96), nn.Linear(96, 288), nn.Linear(96, 96)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).reshape(1, 17, 3, 3, 32).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(self.attend(query, key, value).transpose(1, 2).reshape(1, 17, 96))


def scaled_before(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query * 0.2 @ key.transpose(-2, -1)).softmax(-1) @ value


def rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_before(query * query.cos(), key, value)


def counts(attend: Attend) -> dict[str, int]:
    return fxq.explain(fxq.prepare(Attention(attend).eval(), X)).counts


SPELLINGS = {"one function": F.scaled_dot_product_attention, "written out": scaled_before}


@pytest.mark.parametrize("attend", SPELLINGS.values(), ids=SPELLINGS)
def test_one_quantizer_stands_in_front_of_the_slices(attend: Attend, tmp_path: Path) -> None:
    assert counts(attend)["output"] > 0
    converted = fxq.quantize(Attention(attend).eval(), [X], progress=False)
    path = fxq.export_onnx(converted, tmp_path / "model.onnx", dynamic_batch=False).path
    assert fxq.verify(path, "tensorrt").findings == ()
    # 0.26 MB with quantizers behind the slices, where the projection computes in float.
    assert traffic_mb(get_runtime("tensorrt_rtx").executed_ops(path)) < 0.1


def test_where_something_reads_a_slice_in_float_each_reader_has_its_own() -> None:
    assert "output" not in counts(rotated)


def test_without_slices_it_is_the_input_of_what_reads_it() -> None:
    explained = fxq.explain(fxq.prepare(nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 96)).eval(), X))
    assert explained.counts == {"input": 2, "weight": 2}
