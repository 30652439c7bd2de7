"""What a file says about sizes is so: to a runtime those of one name are equal, and it lets them share memory."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.runtimes import get_runtime


class Pyramid(nn.Module):
    """Two scales of an image, normalized in groups, which torch writes with sizes that nobody infers."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.side, self.norm, self.head = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(image)
        coarse = self.coarse(fine)
        merged = self.side(fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self.head(self.norm(merged)), self.head(self.norm(coarse))


class Tokens(nn.Module):
    """An image taken apart into tokens that attend to fewer, merged ones, as in SegFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.merge = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 2, stride=2)
        self.norm, self.query, self.key_value = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, image: Tensor) -> Tensor:
        features = self.embed(image)
        batch, channels, height, width = features.shape
        tokens = features.flatten(2).transpose(1, 2)
        merged = self.norm(self.merge(features).flatten(2).transpose(1, 2))
        query = self.query(tokens).reshape(batch, -1, 2, channels // 2).transpose(1, 2)
        key, value = self.key_value(merged).reshape(batch, -1, 2, 2, channels // 2).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return tokens + mixed.transpose(1, 2).reshape(batch, height * width, channels)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens)[0]


def sizes_by_name(path: Path, inputs: np.ndarray) -> dict[str, set[int]]:
    """Return the sizes that each name stands for while ``inputs`` run, and {size} under the size where one is given."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    declared = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    outputs = {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name in declared and name not in outputs]
    model.graph.output.extend(declared[name] for name in made)
    all_told = path.with_name("all_told.onnx")
    onnx.save(model, all_told)
    names = [value.name for value in model.graph.output]
    found = defaultdict(set)
    for name, array in zip(names, get_runtime("onnxruntime", optimize=False).run(all_told, inputs), strict=True):
        for dim, size in zip(declared[name].type.tensor_type.shape.dim, array.shape, strict=True):
            if dim.WhichOneof("value"):
                found[dim.dim_param or str(dim.dim_value)].add(size)
    return found


@pytest.mark.parametrize("recipe", ["onnxruntime", "weight_only"])
@pytest.mark.parametrize(
    ("model_type", "shape"),
    [(Pyramid, (2, 3, 16, 16)), (Tokens, (1, 3, 16, 16)), (Attention, (2, 5, 16))],
    ids=["pyramid", "tokens", "attention"],
)
def test_each_size_is_what_the_file_says(
    tmp_path: Path, model_type: type[nn.Module], shape: tuple[int, ...], recipe: str
) -> None:
    torch.manual_seed(0)
    model, x = model_type().eval(), torch.randn(shape)
    report = fxq.export_onnx(
        fxq.quantize(model, None if recipe == "weight_only" else [x], recipe, (x,), progress=False),
        tmp_path / "model.onnx",
    )
    found = sizes_by_name(report.path, torch.randn(3, *shape[1:]).numpy())
    assert found["batch"] == {3}
    assert all(len(sizes) == 1 for sizes in found.values()), found
    assert all(sizes == {int(name)} for name, sizes in found.items() if name.isdigit())
