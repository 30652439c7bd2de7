"""An activation that a file writes as several nodes is one, however it is written."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from support.file_findings import findings, told
from support.qdq_files import QdqFile
from torch import nn

from fxq.verification.finding import WARNING
from fxq.verification.formulas import ACTIVATIONS, POINTS, find_formulas
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.questions import Questions

Write = Callable[["Nodes", str], str]


class Nodes(QdqFile):
    """A file to which operators of numbers and values are added, named in their order."""

    def add(self, op_type: str, *operands: str | float, **attributes: float) -> str:
        count = len(self.nodes)
        names = [
            one if isinstance(one, str) else self.store(f"number{count}_{at}", np.array(one, np.float32))
            for at, one in enumerate(operands)
        ]
        return self.op(op_type, *names, name=f"{op_type.lower()}{count}", **attributes)


def silu(file: Nodes, x: str) -> str:
    return file.add("Mul", file.add("Sigmoid", x), x)


def silu_by_exp(file: Nodes, x: str) -> str:
    return file.add("Div", x, file.add("Add", file.add("Exp", file.add("Neg", x)), 1))


def hardswish(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("HardSigmoid", x, alpha=1 / 6))


def relu6(file: Nodes, x: str) -> str:
    return file.add("Clip", file.add("Add", x, 3), 0, 6)


def hardsigmoid_divided(file: Nodes, x: str) -> str:
    return file.add("Div", relu6(file, x), 6)


def hardswish_divided(file: Nodes, x: str) -> str:
    return file.add("Div", file.add("Mul", x, relu6(file, x)), 6)


def hardswish_of_a_gate(file: Nodes, x: str) -> str:
    return file.add("Mul", hardsigmoid_divided(file, x), x)


def hardswish_by_bounds(file: Nodes, x: str) -> str:
    bounded = file.add("Min", file.add("Relu", file.add("Add", 3, x)), 6)
    return file.add("Mul", file.add("Mul", x, 1 / 6), bounded)


def mish(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("Tanh", file.add("Softplus", x)))


def mish_by_exp(file: Nodes, x: str) -> str:
    softplus = file.add("Log", file.add("Add", file.add("Exp", x), 1))
    return file.add("Mul", file.add("Tanh", softplus), x)


def gelu(file: Nodes, x: str) -> str:
    erf = file.add("Add", file.add("Erf", file.add("Div", x, 2**0.5)), 1)
    return file.add("Mul", file.add("Mul", x, erf), 0.5)


def gelu_halved_first(file: Nodes, x: str) -> str:
    erf = file.add("Add", 1, file.add("Erf", file.add("Mul", x, 0.5**0.5)))
    return file.add("Mul", file.add("Mul", 0.5, x), erf)


def gelu_by_tanh(file: Nodes, x: str) -> str:
    cubed = file.add("Add", x, file.add("Mul", 0.044715, file.add("Pow", x, 3)))
    tanh = file.add("Tanh", file.add("Mul", cubed, (2 / np.pi) ** 0.5))
    return file.add("Mul", file.add("Mul", 0.5, x), file.add("Add", tanh, 1))


FORMULAS = {
    silu: "silu",
    silu_by_exp: "silu",
    hardswish: "hardswish",
    hardsigmoid_divided: "hardsigmoid",
    hardswish_divided: "hardswish",
    hardswish_of_a_gate: "hardswish",
    hardswish_by_bounds: "hardswish",
    mish: "mish",
    mish_by_exp: "mish",
    gelu: "gelu",
    gelu_halved_first: "gelu",
    gelu_by_tanh: "gelu",
}


def integer_conv(file: QdqFile) -> str:
    return file.conv(file.qdq("x", "input"), "conv")


def found(path: Path) -> list[tuple[str, str]]:
    model = OnnxFile.read(path).model
    formulas = find_formulas(model.graph, Questions(model).constants)
    return [(formula.kind, str(node.name)) for node, formula in formulas.items()]


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("silu", nn.SiLU()),
        ("hardsigmoid", nn.Hardsigmoid()),
        ("hardswish", nn.Hardswish()),
        ("mish", nn.Mish()),
        ("gelu", nn.GELU()),
    ],
)
def test_what_formulas_are_compared_with_is_what_torch_computes(kind: str, module: nn.Module) -> None:
    # both in 64 bits
    np.testing.assert_allclose(ACTIVATIONS[kind], module(torch.tensor(POINTS)).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("write", FORMULAS, ids=lambda write: write.__name__)
def test_a_formula_is_found_behind_what_it_is_computed_from(tmp_path: Path, write: Write) -> None:
    """A relu before it is no part of it."""
    file = Nodes()
    y = write(file, file.op("Relu", integer_conv(file), name="before"))
    path = file.save(tmp_path / "model.onnx", y)
    assert found(path)[-1] == (FORMULAS[write], y.removesuffix("_out"))


@pytest.mark.parametrize("write", FORMULAS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("dequantizers", [1, 2])
def test_a_quantizer_between_a_convolution_and_a_formula_is_named(
    tmp_path: Path, write: Write, dequantizers: int
) -> None:
    file = Nodes()
    y = write(file, file.qdq(integer_conv(file), "early"))
    if dequantizers == 2:  # one for each reader
        at = next(at for at, node in enumerate(file.nodes) if node.name == "early/dq")
        again = type(file.nodes[at])()
        again.CopyFrom(file.nodes[at])
        again.name, again.output[0] = "again/dq", "again_out"
        file.nodes.insert(at, again)
        last = [node for node in file.nodes if "early/dq_out" in node.input][-1]
        last.input[:] = ["again_out" if name == "early/dq_out" else name for name in last.input]
    path = file.save(tmp_path / "model.onnx", y)
    assert told(path, "tensorrt") == {(WARNING, "quantizer-before-activation", "early/q")}
    (finding,) = findings(path, "tensorrt")
    assert finding.fix == f"move the pair behind '{y.removesuffix('_out')}'"


def rounded(write: Write, *, before: int) -> Write:
    """Quantize what each node of a formula writes but the last, as quantize_static does, and what it is computed of."""

    def write_rounded(file: Nodes, x: str) -> str:
        sources = itertools.cycle([file.qdq(x, f"before{at}") for at in range(before)] or [x])
        first = len(file.nodes)
        write(file, "source")
        nodes, file.nodes[first:] = file.nodes[first:], []
        for node in nodes:
            node.input[:] = [next(sources) if name == "source" else name for name in node.input]
            file.nodes.append(node)
            if node is not nodes[-1]:
                pair = file.qdq(node.output[0], f"{node.name}_rounded")
                for reader in nodes:
                    reader.input[:] = [pair if name == node.output[0] else name for name in reader.input]
        return nodes[-1].output[0]

    return write_rounded


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("write", FORMULAS, ids=lambda write: write.__name__)
def test_quantizers_inside_a_formula_are_told_once(tmp_path: Path, write: Write, before: int) -> None:
    file = Nodes()
    y = rounded(write, before=before)(file, integer_conv(file))
    path = file.save(tmp_path / "model.onnx", y)
    for target in ("tensorrt", "openvino"):
        told_of = [one for one in findings(path, target) if one.is_broken and one.rule != "mixed-operands"]
        (finding,) = told_of  # but for what it adds inside
        assert finding.rule == "quantizer-in-activation"
        assert finding.what.endswith(f"nodes up to '{y.removesuffix('_out')}'")
        assert f"inside the activation {FORMULAS[write]}," in finding.what
        assert finding.fix.startswith("quantize nothing between 'conv' and ")
    # It computes SiLU on codes.
    assert "quantizer-in-activation" not in {one.rule for one in findings(path, "onnxruntime")}


def test_openvino_takes_kernels_more_for_a_formula_with_quantizers_inside(tmp_path: Path) -> None:
    file = Nodes()
    y = rounded(silu, before=2)(file, integer_conv(file))
    path = file.save(tmp_path / "model.onnx", y)
    (finding,) = findings(path, "openvino")
    assert finding.what.startswith("QuantizeLinear 'before0/q' stands as one of 3 inside the activation silu")
    assert "kernels of its own" in finding.cost
    assert "kernels of its own" not in findings(path, "tensorrt")[0].cost


def test_a_formula_with_quantizers_inside_that_nothing_would_take_in_is_not_judged(tmp_path: Path) -> None:
    file = Nodes()
    y = rounded(silu, before=1)(file, file.op("Sin", integer_conv(file), name="sin"))
    path = file.save(tmp_path / "model.onnx", y)
    assert "quantizer-in-activation" not in {one.rule for one in findings(path, "openvino")}


def test_a_rounded_part_of_a_formula_that_is_read_elsewhere_makes_it_none(tmp_path: Path) -> None:
    file = Nodes()
    y = rounded(silu, before=1)(file, integer_conv(file))
    (gate,) = [node.output[0] for node in file.nodes if node.name.endswith("_rounded/dq")]
    path = file.save(tmp_path / "model.onnx", file.op("Mean", y, gate, name="mean"))
    assert "quantizer-in-activation" not in {one.rule for one in findings(path, "openvino")}


def steeper_silu(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("Sigmoid", file.add("Mul", x, 1.702)))


def wider_hardswish(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("HardSigmoid", x))  # alpha 0.2


def gated_by_another(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("Tanh", file.add("Softplus", file.op("Sin", "x", name="sin"))))


def read_on_the_way(file: Nodes, x: str) -> str:
    gate = file.add("Sigmoid", x)
    return file.op("Mean", file.add("Mul", x, gate), gate, name="mean")


def scaled_per_channel(file: Nodes, x: str) -> str:
    halves = file.store("halves", np.full((4, 1, 1), 0.5, np.float32))
    erf = file.add("Add", file.add("Erf", file.add("Div", x, 2**0.5)), 1)
    return file.add("Mul", file.add("Mul", x, erf), halves)


def logarithm(file: Nodes, x: str) -> str:
    return file.add("Mul", x, file.add("Log", x))


@pytest.mark.parametrize(
    "write",
    [steeper_silu, wider_hardswish, gated_by_another, read_on_the_way, scaled_per_channel, logarithm],
    ids=lambda write: write.__name__,
)
def test_what_is_nearly_a_formula_is_not_judged(tmp_path: Path, write: Write) -> None:
    file = Nodes()
    path = file.save(tmp_path / "model.onnx", write(file, file.qdq(integer_conv(file), "early")))
    assert found(path) == []
    assert "quantizer-before-activation" not in {finding.rule for finding in findings(path, "tensorrt")}


def test_numbers_stored_in_16_bits_are_near_enough(tmp_path: Path) -> None:
    file = Nodes()
    half = file.op("Cast", integer_conv(file), name="half", to=TensorProto.FLOAT16)
    y = gelu(file, half)
    numbers = {name: value.astype(np.float16) for name, value in file.stored.items() if name.startswith("number")}
    file.stored.update(numbers)
    path = file.save(tmp_path / "model.onnx", file.op("Cast", y, name="float", to=TensorProto.FLOAT))
    assert found(path) == [("gelu", y.removesuffix("_out"))]


@pytest.mark.parametrize("operands", [(), (2.0,), (-3.0, 2.0)], ids=["one", "two", "three"])
@pytest.mark.parametrize("op_type", ["Min", "Max"])
def test_any_number_of_operands_is_bounded(tmp_path: Path, op_type: str, operands: tuple[float, ...]) -> None:
    file, before = Nodes(), POINTS.copy()
    x = integer_conv(file)
    assert found(file.save(tmp_path / "model.onnx", file.add("Mul", file.add(op_type, *operands, x), 2.0))) == []
    assert np.array_equal(POINTS, before)


def test_a_product_of_stored_numbers_is_no_formula(tmp_path: Path) -> None:
    file = Nodes()
    path = file.save(tmp_path / "model.onnx", file.add("Add", integer_conv(file), file.add("Mul", 2.0, 3.0)))
    assert found(path) == []


def test_bounds_may_be_attributes_as_they_were(tmp_path: Path) -> None:
    file = Nodes(opset=10)
    x = file.qdq("x", "input")
    y = file.add("Div", file.add("Mul", x, file.add("Clip", file.add("Add", x, 3), min=0.0, max=6.0)), 6)
    assert found(file.save(tmp_path / "model.onnx", y)) == [("hardswish", y.removesuffix("_out"))]


def test_a_pair_that_only_a_formula_reads_is_lone_where_no_layer_is_before_it(tmp_path: Path) -> None:
    file = Nodes()
    y = file.op("Sin", integer_conv(file), name="sin")
    path = file.save(tmp_path / "model.onnx", mish(file, file.qdq(y, "lone")))
    assert told(path, "tensorrt") == {(WARNING, "lone-quantizer", "lone/q")}


@pytest.mark.parametrize("write", [silu, hardswish_divided, mish], ids=lambda write: write.__name__)
def test_a_residual_behind_a_formula_is_found(tmp_path: Path, write: Write) -> None:
    file = Nodes()
    path = file.save(tmp_path / "model.onnx", file.op("Add", write(file, integer_conv(file)), "x", name="add"))
    assert told(path, "tensorrt") == {(WARNING, "residual-quantizer", "add")}


def test_onnxruntime_wants_the_pair_behind_the_convolution(tmp_path: Path) -> None:
    file = Nodes()
    x = file.qdq("x", "input", np.uint8, 128)
    y = file.qdq(file.conv(x, "conv", bias=file.bias("bias")), "output", np.uint8, 128)
    assert told(file.save(tmp_path / "model.onnx", mish(file, y)), "onnxruntime") == set()
