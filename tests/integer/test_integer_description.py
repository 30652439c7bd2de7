"""An integer model as JSON and safetensors, and as C: compiled here, and equal to the graph bit for bit."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from integer_models import Between, Call, converted
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxq
from fxq.quant import DEQUANTIZE, QUANTIZE

EXAMPLE = Path(__file__).parents[2] / "examples" / "integer_c"
COMPILER = shutil.which("cc")


class SmallNet(nn.Module):
    """A stem, a residual block with groups, pools, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.right = nn.Conv2d(8, 8, 1, bias=False)
        self.pools = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.left(x) + self.right(x))
        return self.fc(self.pools(x).flatten(1))


class Branches(nn.Module):
    """What else there is: a table, a product that broadcasts, a concatenation, moves, resizes, a transposed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))
        a, b = F.hardswish(x).chunk(2, 1)
        x = torch.cat([F.pad(b, (1, 1), value=0.5), F.pad(a, (1, 1))], 1)
        x = F.interpolate(self.up(x), size=(7, 9), mode="bilinear")
        return F.interpolate(x.transpose(2, 3), scale_factor=2)


def net(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape = {"small net": (1, 3, 16, 16), "branches": (2, 3, 5, 6), "in one dimension": (2, 3, 12)}[name]
    x = torch.randn(shape)
    if name == "small net":
        return SmallNet().eval(), x
    if name == "branches":
        return Between(Branches(), 6).eval(), x
    inside = nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2, padding=2), nn.ReLU6(), nn.MaxPool1d(2, ceil_mode=True))
    return Between(nn.Sequential(inside, Call(lambda x: x - x.mean(-1, keepdim=True))), 4, 1).eval(), x


def integers_at_both_ends(integer: GraphModule, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes that the integer graph quantizes ``x`` to, and the integers that it dequantizes."""
    seen = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if n.target is QUANTIZE:
                seen["input"] = result
            if n.target is DEQUANTIZE:
                seen["output"] = self.env[n.args[0]]
            return result

    Watching(integer, garbage_collect_values=False).run(x)
    return seen["input"], seen["output"]


def halve_often(integer: GraphModule) -> None:
    """Make the multipliers of layers 2^-7, so that sums lie halfway between two codes often."""
    for layer in ("stem", "left"):
        for name, buffer in integer.get_submodule(layer).named_buffers():
            if name in ("multiplier", "shift"):
                buffer.fill_(2**30 if name == "multiplier" else 37)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("integer_c_generate", EXAMPLE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler (cc) on this machine")
@pytest.mark.parametrize("recipe", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", ["small net", "branches", "in one dimension"])
def test_the_c_example_computes_the_same_bits(name: str, recipe: str, tmp_path: Path) -> None:
    model, x = net(name)
    integer = fxq.to_integer(converted(model, x, recipe))
    if name == "small net":
        halve_often(integer)
    description, _ = fxq.export_integer(integer, tmp_path / "model.json")
    generator().main(str(description), str(tmp_path / "model.h"))
    program = tmp_path / "program"
    warnings = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]
    include = ["-I", str(tmp_path), "-I", str(EXAMPLE)]
    subprocess.run([str(COMPILER), *warnings, *include, str(EXAMPLE / "main.c"), "-o", str(program)], check=True)
    for seed in range(2):
        inputs = 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        codes, expected = integers_at_both_ends(integer, inputs)
        written = subprocess.run([str(program)], input=codes.numpy().tobytes(), capture_output=True, check=True).stdout
        assert written == expected.contiguous().numpy().tobytes()


def test_the_files_tell_operators_sizes_and_numbers(tmp_path: Path) -> None:
    model, x = net("small net")
    integer = fxq.to_integer(converted(model, x))
    fxq.export_integer(integer, tmp_path / "model.json", torch.randn(3, 3, 16, 16))
    data = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    tensors = load_file(tmp_path / "model.safetensors")
    assert data["tensors"] == "model.safetensors"
    assert "half to even" in data["rounding"]
    first = data["nodes"][0]
    assert (first["operator"], first["shape"], first["dtype"]) == ("integer_conv", [3, 8, 8, 8], "int32")
    assert first["arguments"]["x"] == {"value": data["inputs"][0]["name"]}
    assert first["arguments"]["stride"] == [2, 2]
    assert torch.equal(tensors[first["arguments"]["weight"]["tensor"]], integer.get_buffer("stem.weight"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int8, torch.int32}
    (output,) = data["outputs"]
    assert output["axis"] == -1
    assert len(output["scale"]) == 5
    assert data["left_in_float"] == []


def test_what_stays_in_float_is_named(tmp_path: Path) -> None:
    model, x = net("small net")
    integer = fxq.to_integer(converted(nn.Sequential(model, nn.Softmax(1)), x, "tensorrt"))
    fxq.export_integer(integer, tmp_path / "model.json")
    assert len(json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["left_in_float"]) == 1


def test_a_converted_model_and_another_name_are_refused(tmp_path: Path) -> None:
    model, x = net("small net")
    qdq = converted(model, x)
    with pytest.raises(fxq.StageError, match=r"export_integer takes the result of fxq.to_integer"):
        fxq.export_integer(qdq, tmp_path / "model.json")
    with pytest.raises(fxq.ExportError, match=r"name it \.json"):
        fxq.export_integer(fxq.to_integer(qdq), tmp_path / "model.h")
    assert list(tmp_path.iterdir()) == []
