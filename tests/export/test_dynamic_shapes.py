"""``export_onnx(dynamic_shapes=...)``: what is open in the file is open, and what the model fixes is an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import fxq
from fxq.export import ExportReport
from fxq.runtimes import get_runtime


class Segments(nn.Module):
    """Fully convolutional: halves the image, and scales the result to its size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.head(self.norm(self.down(image)).relu())
        return F.interpolate(scores, size=image.shape[-2:], mode="nearest")


class Sound(nn.Module):
    """One number for each step of a sound."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(8, 1, 3, padding=1))

    def forward(self, sound: Tensor) -> Tensor:
        return self.net(sound[:, None]).squeeze(1)


class Tagger(nn.Module):
    def __init__(self, layer: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 8), layer(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.table(ids))[0])


class Encoder(nn.Module):
    """Embeddings, positions, and one layer of a transformer, with a mask of the words that are there."""

    def __init__(self, most: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(most, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.layer(x, src_key_padding_mask=mask == 0)


class Both(nn.Module):
    """Inputs in a dict and a list; their sizes are one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, features: dict[str, Tensor], more: list[Tensor]) -> Tensor:
        return self.left(features["x"]) + self.right(more[0]) * more[1]


class Skip(nn.Module):
    """Halves and doubles again: right for even sizes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(11, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(self.down(image)), image], 1))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2 * 8 * 8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).flatten(1))


class Decides(nn.Module):
    """What its Python asks about sizes is given to it."""

    def __init__(self, ask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.ask = nn.Conv2d(3, 4, 3, stride=2, padding=1), ask

    def forward(self, image: Tensor) -> Tensor:
        return self.ask(image, self.conv(image))


def converted(model: nn.Module, *inputs: Any, recipe: str = "onnxruntime") -> Any:
    # Of a wider range than what the tests run.
    wider = [
        pytree.tree_map(lambda x: 2 * torch.randn(x.shape) if x.is_floating_point() else x, inputs) for _ in range(4)
    ]
    return fxq.quantize(model.eval(), wider if recipe == "onnxruntime" else None, recipe, inputs, progress=False)


def declared(report: ExportReport) -> dict[str, list[int | str]]:
    graph = onnx.load(report.path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def run(report: ExportReport, *inputs: Tensor) -> list[np.ndarray]:
    return get_runtime("onnxruntime").run(report.path, [tensor.numpy() for tensor in inputs])


def assert_like_model(model: nn.Module, report: ExportReport, inputs: tuple[Any, ...], flat: list[Tensor]) -> None:
    with torch.no_grad():
        expected = model(*inputs).numpy()
    (found,) = run(report, *flat)
    assert found.shape == expected.shape
    # 8 bits, and values beyond the range seen, leave more than 12 dB; a burned-in size leaves none.
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) > 12


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_height_and_width_stay_open_under_their_names(tmp_path: Path) -> None:
    model = Segments()
    gm = converted(model, torch.randn(2, 3, 8, 8))
    shapes = {"image": {0: "batch", 2: "height", 3: "width"}}
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert declared(report)["image"] == ["batch", 3, "height", "width"]
    assert report.shapes == {"image": ("batch", 3, "height", "width")}
    for size in ((1, 3, 8, 8), (3, 3, 11, 20)):
        image = torch.randn(size)
        assert_like_model(model, report, (image,), [image])


def test_each_open_size_is_run_alone_and_all_together(tmp_path: Path) -> None:
    gm = converted(Segments(), torch.randn(2, 3, 8, 8))
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert [run.sizes for run in report.other_sizes] == [
        {"batch": 1}, {"height": 9}, {"width": 9}, {"batch": 3, "height": 16, "width": 16},
    ]  # fmt: skip
    assert all(output.is_within() for run in report.other_sizes for output in run.parity)
    assert "(optimized, batch 3, height 16, width 16)" in str(report)
    assert "image: batch, 3, height, width" in str(report)


def test_the_length_of_a_sound_stays_open(tmp_path: Path) -> None:
    model = Sound()
    report = fxq.export_onnx(
        converted(model, torch.randn(1, 64)), tmp_path / "model.onnx", dynamic_shapes={"sound": {1: "samples"}}
    )
    assert declared(report)["sound"] == [1, "samples"]
    assert not report.dynamic_batch
    sound = torch.randn(1, 101)
    assert_like_model(model, report, (sound,), [sound])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("recipe", ["weight_only", "onnxruntime"])
def test_recurrent_layers_run_over_any_length(tmp_path: Path, recipe: str, layer: type[nn.LSTM | nn.GRU]) -> None:
    model = Tagger(layer)
    gm = converted(model, torch.randint(0, 20, (2, 5)), recipe=recipe)
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"ids": {0: "batch", 1: "words"}})
    ids = torch.randint(0, 20, (3, 9))
    assert declared(report) == {"ids": ["batch", "words"], "output": ["batch", "words", 4]}
    assert_like_model(model, report, (ids,), [ids])


@pytest.mark.parametrize("recipe", ["onnxruntime", "dynamic"])
def test_a_transformer_takes_any_batch_and_length_with_its_mask(tmp_path: Path, recipe: str) -> None:
    model = Encoder()
    gm = converted(model, torch.randint(0, 20, (2, 5)), torch.ones(2, 5, dtype=torch.int64), recipe=recipe)
    open_sizes = {0: "batch", 1: "words"}
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"ids": open_sizes, "mask": open_sizes})
    assert declared(report)["ids"] == declared(report)["mask"] == ["batch", "words"]
    ids, mask = torch.randint(0, 20, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    assert_like_model(model, report, (ids, mask), [ids, mask])


def test_nested_inputs_share_a_named_size(tmp_path: Path) -> None:
    model = Both()
    x, more = torch.randn(2, 3, 4), [torch.randn(2, 3, 4), torch.randn(1, 3, 1)]
    shapes = {"features": {"x": {1: "steps"}}, "more": [{1: "steps"}, (None, "steps", None)]}
    report = fxq.export_onnx(converted(model, {"x": x}, more), tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert list(declared(report).values())[:3] == [[2, "steps", 4], [2, "steps", 4], [1, "steps", 1]]
    x, more = torch.randn(2, 6, 4), [torch.randn(2, 6, 4), torch.randn(1, 6, 1)]
    assert_like_model(model, report, ({"x": x}, more), [x, *more])


def test_sizes_without_names_that_the_model_makes_equal_get_one(tmp_path: Path) -> None:
    gm = converted(Encoder(), torch.randint(0, 20, (2, 5)), torch.ones(2, 5, dtype=torch.int64))
    shapes = ({1: Dim.DYNAMIC}, {1: Dim.AUTO})
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert report.shapes == {"ids": (2, "ids_dim_1"), "mask": (2, "ids_dim_1")}


def test_auto_leaves_fixed_what_the_model_fixes(tmp_path: Path) -> None:
    gm = converted(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 5, 4))
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=({1: Dim.AUTO, 2: Dim.AUTO},))
    assert report.shapes == {"input": (2, "input_dim_1", 4)}


def test_multiples_are_written_as_such(tmp_path: Path) -> None:
    gm = converted(Skip(), torch.randn(1, 3, 8, 8))
    half = Dim("half")
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {2: 2 * half, 3: 2 * half}})
    assert report.shapes == {"image": (1, 3, "2*half", "2*half")}
    assert [run.sizes for run in report.other_sizes] == [{"half": 5}]


def test_a_size_that_a_layer_fixes_is_named_with_the_layer(tmp_path: Path) -> None:
    gm = converted(Flat(), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.ExportError, match=r"dimension 2 of 'image' \(height\) cannot .* at 8.*'head'"):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {2: "height"}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        (lambda x, y: y + 1 if x.shape[2] > 32 else y, "decides by height > 32"),
        (lambda x, y: sum(y[:, :, index] for index in range(y.shape[2])), r"takes for a number .*height"),
        (lambda x, y: y * float(x.shape[2]), "takes for a number height"),
        (lambda x, y: sum(row for row in x[0, 0]), "counts by height"),
        (lambda x, y: y[..., : int(y.shape[2] * 0.5), :], "takes for a number"),
    ],
    ids=["branch", "range", "float", "iteration", "int"],
)  # fmt: skip
def test_what_python_decided_by_an_open_size_is_an_error(
    tmp_path: Path, ask: Callable[[Tensor, Tensor], Tensor], found: str
) -> None:
    gm = converted(Decides(ask), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.ExportError, match=rf"dimension 2 of 'image'.*{found}.*test_dynamic_shapes.py:"):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {2: "height"}})
    fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {0: "batch"}})


def test_a_size_that_torch_writes_as_a_number_is_named_with_the_node(tmp_path: Path) -> None:
    gm = converted(Decides(lambda x, y: y + torch.linspace(0, 1, y.shape[3])), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.ExportError, match=r"with width 9 the file does not .* because of node 'linspace'"):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {3: "width"}})
    gm = converted(Decides(lambda x, y: x + torch.linspace(0, 1, x.shape[3])), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.ExportError, match=r"dimension 3 of 'image' \(width\).*node 'linspace'"):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {3: "width"}})


def test_a_slice_to_beyond_any_size_leaves_sizes_open(tmp_path: Path) -> None:
    """As files of other tools have it."""
    gm = converted(Decides(lambda x, y: y[0:1000000000, ..., 1:2147483647]), torch.randn(2, 3, 8, 8))
    assert fxq.export_onnx(gm, tmp_path / "model.onnx").dynamic_batch


def test_tensors_made_of_a_size_follow_it(tmp_path: Path) -> None:
    def made(x: Tensor, y: Tensor) -> Tensor:
        n = y.shape[3]
        square = torch.triu(torch.full((n, n), 2.0), 1) + torch.ones([n, n]) + torch.eye(n) + torch.zeros(size=(n, n))
        return y @ square

    model = Decides(made)
    gm = converted(model, torch.randn(2, 3, 8, 8), recipe="weight_only")
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {3: "width"}})
    image = torch.randn(2, 3, 8, 14)
    assert_like_model(model, report, (image,), [image])


def test_a_decision_that_the_bounds_take_is_none(tmp_path: Path) -> None:
    gm = converted(Decides(lambda x, y: y + 1 if x.shape[2] > 32 else y), torch.randn(2, 3, 8, 8))
    shapes = {"image": {2: Dim("height", max=32)}}
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=shapes)
    assert report.shapes["image"][2] == "height"


def test_a_table_of_positions_bounds_what_is_tried(tmp_path: Path) -> None:
    ids, mask = torch.randint(0, 20, (2, 16)), torch.ones(2, 16, dtype=torch.int64)
    gm = converted(Encoder(most=16), ids, mask)
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=({1: "words"}, {1: "words"}))
    assert [run.sizes for run in report.other_sizes] == [{"words": 15}]


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({"imgae": {2: "h"}}, r"names 'imgae'.*did you mean 'image'"),
        (({}, {}), "2 entries for 1 inputs"),
        ({"image": {4: "h"}}, "dimension 4 for 'image', whose are 0 to 3"),
        ({"image": {2: "h", -2: "k"}}, "dimension 2 of 'image' twice"),
        ({"image": ("b", None)}, "2 dimensions for 'image', which has 4"),
        ({"image": {2: "h w"}}, "letters, digits and underscores"),
        ({"image": {2: "same", 3: "same", 1: "same"}}, "sizes of one name are equal"),
        ({"image": {2: Dim("h", min=9)}}, r"is 8 in the example inputs, which is not h with h from 9"),
        ({"image": {2: 3 * Dim("h")}}, r"is 8 in the example inputs, which is not 3\*h"),
        ({"image": {2: 9}}, "fixes dimension 2 of 'image' at 9, and the example has 8"),
        ({"image": {2: Dim("h", max=9), 3: "h"}}, "other bounds"),
        ({"image": {2: 1.5}}, "1.5 for dimension 2"),
        ({"image": "h"}, "write {dimension: name}"),
        ("image", "must be a dict"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(tmp_path: Path, shapes: Any, found: str) -> None:
    gm = converted(Segments(), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.InputError, match=found):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=shapes)


def test_shapes_say_all_and_the_batch_may_be_added(tmp_path: Path) -> None:
    gm = converted(Segments(), torch.randn(2, 3, 8, 8))
    height = {"image": {2: "height"}}
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=height)
    assert report.shapes == {"image": (2, 3, "height", 8)}
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=height, dynamic_batch=True)
    assert report.shapes == {"image": ("batch", 3, "height", 8)}
    assert report.dynamic_batch
    with pytest.raises(fxq.errors.InputError, match="dynamic_batch=False and dynamic_shapes contradict"):
        fxq.export_onnx(gm, tmp_path / "no.onnx", dynamic_shapes={"image": {0: "n"}}, dynamic_batch=False)
    with pytest.raises(fxq.errors.InputError, match="dynamic_batch=True and dynamic_shapes contradict"):
        fxq.export_onnx(gm, tmp_path / "no.onnx", dynamic_shapes={"image": {0: None}}, dynamic_batch=True)


def test_inputs_and_outputs_are_renamed_in_order(tmp_path: Path) -> None:
    gm = converted(Both(), {"x": torch.randn(2, 4)}, [torch.randn(2, 4), torch.randn(2, 4)])
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", input_names=["a", "b", "c"], output_names=["sum"])
    assert list(declared(report)) == ["a", "b", "c", "sum"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        (["a", "b"], None, "input_names has 2 names for 1"),
        (None, [], "output_names has 0 names for 1"),
        ([""], None, "'', which is none"),
        ("image", None, "must be a list"),
        (["same"], ["same"], "two inputs or outputs"),
        (["output"], None, "two inputs or outputs"),
        (["head.weight"], None, "stored tensor"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, inputs: Any, outputs: Any, found: str) -> None:
    gm = converted(Segments(), torch.randn(2, 3, 8, 8))
    with pytest.raises(fxq.errors.InputError, match=found):
        fxq.export_onnx(gm, tmp_path / "model.onnx", input_names=inputs, output_names=outputs)
    assert list(tmp_path.iterdir()) == []


def test_a_higher_opset_is_written_and_a_lower_one_names_who_needs_more(tmp_path: Path) -> None:
    gm = converted(Segments(), torch.randn(2, 3, 8, 8))
    assert fxq.export_onnx(gm, tmp_path / "model.onnx", opset=21).opset == 21
    with pytest.raises(fxq.errors.ExportError, match=r"opset=17 is too low: torch.onnx.* needs 18"):
        fxq.export_onnx(gm, tmp_path / "no.onnx", opset=17)
    with pytest.raises(fxq.errors.ExportError, match="opset=99 is too high"):
        fxq.export_onnx(gm, tmp_path / "no.onnx", opset=99)
    with pytest.raises(fxq.errors.InputError, match="opset must be a number"):
        fxq.export_onnx(gm, tmp_path / "no.onnx", opset="21")  # type: ignore[arg-type]
    four_bits = converted(nn.Sequential(nn.Linear(32, 32)), torch.randn(2, 32), recipe="weight_only_int4")
    with pytest.raises(fxq.errors.ExportError, match=r"DequantizeLinear.* \(node '.*'\) needs 21"):
        fxq.export_onnx(four_bits, tmp_path / "no.onnx", opset=20)


def test_a_pool_that_onnx_has_only_for_one_size_is_named(tmp_path: Path) -> None:
    gm = converted(Decides(lambda x, y: F.adaptive_avg_pool2d(y, 2)), torch.randn(2, 3, 8, 8))
    with pytest.raises(
        fxq.errors.ExportError, match=r"with height 9 the file .* because of node 'adaptive_avg_pool2d'"
    ):
        fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes={"image": {2: "height"}})


class Twice(nn.Module):
    """One layer with a start that is given, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8, num_layers=2)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y, state = self.layer(x, (h, h))
        return self.layer(y, state)[0]


def test_a_recurrent_layer_in_float_is_an_operator_at_each_call(tmp_path: Path) -> None:
    model, x, h = Twice(), torch.randn(5, 2, 8), torch.randn(2, 2, 8)
    gm = converted(model, x, h)
    report = fxq.export_onnx(gm, tmp_path / "model.onnx", dynamic_shapes=({0: "steps"}, None))
    assert [node.op_type for node in onnx.load(report.path).graph.node].count("LSTM") == 4
    x = torch.randn(9, 2, 8)
    with torch.no_grad():
        # Float all through: the sums are the same but for their order.
        np.testing.assert_allclose(run(report, x, h)[0], model(x, h).numpy(), atol=1e-5)
