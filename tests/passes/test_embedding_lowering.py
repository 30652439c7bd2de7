"""An embedding looks up integer rows and dequantizes what it looked up."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxq
from fxq.graph import graph_text
from fxq.nn import QuantEmbedding

INDICES = torch.tensor([[1, 2, 0], [9, 2, 5]])
ROWS = fxq.QuantDescriptor(axis=0)


def model(columns: int = 6, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, columns, **options)).eval()  # type: ignore[arg-type]


def lowered_with(net: nn.Module, weight: fxq.QuantDescriptor) -> tuple[GraphModule, GraphModule]:
    recipe = fxq.recipe("weight_only").replace(default=fxq.QConfig(weight=weight))
    prepared = fxq.prepare(net, INDICES, recipe, verify=True)
    fxq.calibrate_weights(prepared)
    return prepared, fxq.convert(prepared)


def test_rows_are_looked_up_as_integers() -> None:
    _, lowered = lowered_with(model(), ROWS)
    assert (
        graph_text(lowered)
        == """\
input_1 = input
_0_weight = self.0.weight
embedding = embedding(input_1, _0_weight)
to = .to(embedding, torch.float32)
_0_weight_scale = self.0.weight_scale
unsqueeze = .unsqueeze(_0_weight_scale, 1)
embedding_1 = embedding(input_1, unsqueeze)
mul = mul(to, embedding_1)
return mul"""
    )
    assert lowered.get_buffer("0.weight").dtype == torch.int8


FORMATS = {
    "per row": ROWS,
    "per tensor": fxq.QuantDescriptor(),
    "4 bits per row": fxq.QuantDescriptor(num_bits=4, axis=0),
    "4 bits per tensor": fxq.QuantDescriptor(num_bits=4),
}


@pytest.mark.parametrize("weight", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("columns", [6, 5], ids=["even", "odd"])
def test_the_values_are_those_of_the_quantized_table(weight: fxq.QuantDescriptor, columns: int, tmp_path: Path) -> None:
    prepared, lowered = lowered_with(model(columns, padding_idx=2), weight)
    with torch.no_grad():
        expected, found = prepared(INDICES), lowered(INDICES)
    # amax / hi and its reciprocal, each rounded once.
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    path = fxq.export_onnx(lowered, tmp_path / "table.onnx").path  # the same in ONNX Runtime, or an error
    tables = [item for item in onnx.load(path).graph.initializer if len(item.dims) == 2 and item.dims[1] > 1]
    assert [(item.data_type, item.dims[1]) for item in tables] == [
        (onnx.TensorProto.UINT8, (columns + 1) // 2) if weight.num_bits == 4 else (onnx.TensorProto.INT8, columns)
    ]


def test_a_table_placed_by_hand_may_have_a_range_per_column() -> None:
    net = nn.Sequential(QuantEmbedding(10, 6, quant_desc_weight=fxq.QuantDescriptor(axis=1))).eval()
    prepared, lowered = lowered_with(net, ROWS)
    assert prepared.get_submodule("0").weight_quantizer.amax.numel() == 6
    torch.testing.assert_close(lowered(INDICES), prepared(INDICES).detach(), atol=0, rtol=1e-6)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, indices: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(indices))
        return logits


@pytest.mark.parametrize("weight", FORMATS.values(), ids=FORMATS)
def test_a_table_that_is_also_the_weight_of_a_layer_is_right_in_both(weight: fxq.QuantDescriptor) -> None:
    prepared, lowered = lowered_with(Tied().eval(), weight)
    with torch.no_grad():
        torch.testing.assert_close(lowered(INDICES), prepared(INDICES), atol=1e-5, rtol=1e-5)
    # Eight bits: one table in all. Four: packed by twos for the look-up, by the file for the layer.
    tables = [name for name, value in lowered.named_buffers() if value.dim() == 2]
    assert tables == (["table.weight"] if weight.num_bits == 8 else ["table.weight_packed", "table.weight"])


def test_a_switched_off_quantizer_leaves_the_float_table() -> None:
    net = nn.Sequential(QuantEmbedding(10, 6)).eval()
    net[0].weight_quantizer.disable()
    prepared, lowered = lowered_with(net, ROWS)
    assert torch.equal(lowered(INDICES), prepared(INDICES))


def test_a_table_that_changes_as_it_is_read_stays_in_float() -> None:
    prepared = fxq.prepare(model(max_norm=1.0), INDICES, "weight_only")
    assert type(prepared.get_submodule("0")) is nn.Embedding
    assert "max_norm changes the table as it is read" in str(fxq.explain(prepared))
    by_hand = nn.Sequential(QuantEmbedding(10, 6, max_norm=1.0)).eval()
    with pytest.raises(fxq.GraphError, match=r"'0' .QuantEmbedding.: max_norm changes the table"):
        fxq.convert(fxq.prepare(by_hand, INDICES, "weight_only"))


def test_a_format_that_cannot_be_looked_up_is_refused() -> None:
    affine = fxq.QuantDescriptor(unsigned=True, symmetric=False)
    by_hand = nn.Sequential(QuantEmbedding(10, 6, quant_desc_weight=affine)).eval()
    with pytest.raises(fxq.GraphError, match=r"one symmetric integer range.*QuantDescriptor\(axis=0\)"):
        fxq.convert(fxq.prepare(by_hand, INDICES, "weight_only"))
