import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.testing import assert_rewrites
from fxq_passes import InsertQuantizers, PlanOps, SolveScales

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
PASSES = [PlanOps(), SolveScales(), InsertQuantizers()]


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


def test_the_inputs_of_a_concatenation_share_one_quantizer_module() -> None:
    both = "input 0: int8 per tensor; input 1: int8 per tensor"
    assert_rewrites(
        PASSES,
        model=Concat(),
        inputs=X,
        after=f"""
            x = input
            a_input_quantizer = TensorQuantizer[a_input_quantizer](x)
            a = QuantConv2d[a](a_input_quantizer)  # input 0: int8 per tensor
            cat_input_quantizer = TensorQuantizer[cat_input_quantizer](a)
            b = QuantConv2d[b](a_input_quantizer)  # input 0: int8 per tensor
            cat_input_quantizer_1 = TensorQuantizer[cat_input_quantizer](b)
            cat = cat([cat_input_quantizer, cat_input_quantizer_1], 1)  # {both}
            cat_input_quantizer_2 = TensorQuantizer[cat_input_quantizer](cat)
            c = QuantConv2d[c](cat_input_quantizer_2)  # input 0: int8 per tensor
            return c
        """,
    )


class Shuffled(nn.Module):
    """Two units of a ShuffleNet: half of the channels pass the second one by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shuffled = torch.cat([self.a(x), self.b(x)], 1).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        past, read = shuffled.chunk(2, 1)
        return self.d(torch.cat([past, self.c(read)], 1)[:, :4])  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_parts_of_a_concatenation_keep_its_scale(target: str) -> None:
    found = fxq.explain(fxq.prepare(Shuffled().eval(), X, target))
    read = [tensor.quantizer for name in ("cat", "cat_1", "c", "d") for tensor in found[name].quantized]
    assert {path for path in read if "weight" not in path} == {"cat_input_quantizer"}


def test_a_concatenation_in_float_shares_nothing() -> None:
    model = Concat()
    model.c = nn.Sigmoid()  # type: ignore[assignment]
    record = assert_rewrites(
        PASSES,
        model=model,
        inputs=X,
        after="""
            x = input
            a_input_quantizer = TensorQuantizer[a_input_quantizer](x)
            a = QuantConv2d[a](a_input_quantizer)  # input 0: int8 per tensor
            b = QuantConv2d[b](a_input_quantizer)  # input 0: int8 per tensor
            cat = cat([a, b], 1)
            c = Sigmoid[c](cat)
            return c
        """,
    )
    assert record.of("solve_scales") == []


class Moves(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "max_pool":
            return self.b(nn.functional.max_pool2d(x, 2))
        if self.how == "transpose":
            return self.b(x.transpose(2, 3))
        if self.how == "reshape":
            return self.b(x.reshape(x.shape[0], 4, 9, 4))
        pieces = {
            "chunk": lambda: x.chunk(2, 1),
            "torch.chunk": lambda: torch.chunk(x, 2, 1),
            "split": lambda: torch.split(x, 2, 1),
            "slice": lambda: (x[:, :2], x[:, 2:]),
        }[self.how]()
        return self.c(pieces[0]) + self.c(pieces[1])


@pytest.mark.parametrize("how", ["max_pool", "transpose", "reshape", "chunk", "torch.chunk", "split", "slice"])
def test_what_only_moves_data_keeps_the_range_of_its_input(how: str) -> None:
    prepared = fxq.prepare(Moves(how).eval(), X, recipe="onnxruntime")
    readers = [node for node in prepared.graph.nodes if node.target in ("b", "c")]
    producers = [node for node in prepared.graph.nodes if node.target == "a"]
    # Nothing reads the values of the convolution but its quantizer.
    (after_a,) = [user for user in producers[0].users if user.target is not getattr]
    assert {str(reader.args[0].target) for reader in readers} == {str(after_a.target)}


def test_what_moves_data_out_of_the_model_is_quantized_where_the_target_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten()).eval()
    assert "_1" in str(fxq.prepare(model, X, recipe="onnxruntime").graph.output_node().args[0].args[0])
    returned = fxq.prepare(model, X, recipe="tensorrt").graph.output_node().args[0]
    assert returned.target == "1"


def test_the_shared_quantizer_sees_every_tensor_of_its_group() -> None:
    model = Concat().eval()
    with torch.no_grad():
        model.b.weight.mul_(100)
    prepared = fxq.prepare(model, X)
    with pytest.warns(UserWarning, match="'a' has .* steps"):  # of b's range, next to nothing
        fxq.calibrate(prepared, [X], progress=False)
    quantizer = prepared.get_submodule("cat_input_quantizer")
    assert isinstance(quantizer, fxq.TensorQuantizer)
    # The histogram fits the maximum exactly; in float, b is the larger input by far.
    torch.testing.assert_close(quantizer.amax, model.b(X).abs().max().detach(), rtol=1e-6, atol=0)
