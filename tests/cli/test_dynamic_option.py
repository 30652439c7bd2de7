"""``fxq quantize --dynamic``, ``--input-names``, ``--output-names``, ``--opset``: what the file looks like."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import Result

from fxq.cli.dynamic_spec import DynamicDim, DynamicSpec, parse_dynamic_spec

Fxq = Callable[..., Result]

SMALL = (
    *("quantize", "nets_of_a_user:small", "--input-shape", "1,3,12,12"),
    *("--recipe", "weight_only", "--out", "small.onnx"),
)


def shapes(path: Path) -> dict[str, list[object]]:
    graph = onnx.load(path).graph
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_dimensions_stay_open_under_names_and_the_summary_says_with_what_it_ran(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq(*SMALL, "--dynamic", "x:0,2=height,3=width")
    assert result.exit_code == 0, result.output
    assert shapes(tmp_path / "small.onnx") == {"x": ["batch", 3, "height", "width"], "output": ["batch", 4]}
    said = " ".join(result.stdout.split())
    assert "x: batch, 3, height, width" in said
    assert "run with batch 2; height 13; width 13; batch 2, height 24, width 24" in said


def test_the_float_side_is_in_the_dtype_asked_for(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq(*SMALL, "--float-dtype", "float16", "--keep-io-types")
    assert result.exit_code == 0, result.output
    assert "float16" in result.output
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.initializer}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "float32, float16 or bfloat16" in fxq(*SMALL, "--float-dtype", "half").output


def test_names_and_opset_are_those_asked_for(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq(*SMALL, "--input-names", "image", "--output-names", "scores", "--opset", 20)
    assert result.exit_code == 0, result.output
    assert list(shapes(tmp_path / "small.onnx")) == ["image", "scores"]
    assert onnx.load(tmp_path / "small.onnx").opset_import[0].version == 20


def test_inputs_that_share_a_size_by_name(fxq: Fxq, tmp_path: Path) -> None:
    result = fxq(
        *("quantize", "nets_of_a_user:Masked", "--recipe", "weight_only", "--out", "masked.onnx"),
        *("--input-shape", "ids:1,5:int64", "--input-shape", "mask:1,5"),
        *("--dynamic", "ids:0,1=words:1-64", "--dynamic", "mask:0,1=words:1-64"),
    )
    assert result.exit_code == 0, result.output
    assert list(shapes(tmp_path / "masked.onnx").values())[:2] == [["batch", "words"], ["batch", "words"]]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--dynamic", "y:0"), "there is no input 'y'; Small takes x"),
        (("--dynamic", "x:4"), "--dynamic has a dimension 4 for 'x', whose are 0 to 3"),
        (("--dynamic", "x:0", "--dynamic", "x:2"), "given twice"),
        (("--dynamic", "x:0", "--static-batch"), "--static-batch and --dynamic contradict each other"),
        (("--dynamic", "x:2=h:13-20"), "give data or an --input-shape of a size within"),
        (("--dynamic", "x:1"), "Leave it out of --dynamic"),
        (("--input-names", "a,b"), "--input-names has 2 names for 1, x"),
        (("--output-names", "a,b"), "--output-names has 2 names for 1"),
        (("--opset", "12"), "--opset 12 is too low: torch.onnx, which writes no older operators, needs 18. Take"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_words_of_the_shell(fxq: Fxq, options: tuple[str, ...], found: str) -> None:
    result = fxq(*SMALL, *options)
    assert result.exit_code == 1
    assert found in " ".join(result.stderr.split())
    assert "dynamic_shapes" not in result.stderr


def test_a_decision_by_an_open_size_is_refused_with_the_option_that_bounds_it(fxq: Fxq) -> None:
    call = (
        "quantize",
        "nets_of_a_user:ByShape",
        "--input-shape",
        "1,3,8,8",
        "--recipe",
        "weight_only",
        "--out",
        "a.onnx",
    )
    result = fxq(*call, "--dynamic", "x:2=height")
    assert result.exit_code == 1
    assert "its Python decides by height > 3" in result.stderr
    assert "(--dynamic NAME:DIM=SIZE:LEAST-MOST)" in result.stderr
    assert fxq(*call, "--dynamic", "x:2=height:4-64").exit_code == 0


def test_the_text_of_the_option_is_read() -> None:
    dims = (DynamicDim(0), DynamicDim(2, "height"), DynamicDim(3, "width", 8, 64))
    assert parse_dynamic_spec("x:0,2=height, 3=width:8-64") == DynamicSpec("x", dims)


@pytest.mark.parametrize("text", ["", "x", "x:", "0,1", "x:a", "x:0=", "x:0=a b", "x:0=a:9", "x:0=a:9-3", "x:1,1"])
def test_a_text_that_is_no_such_option_is_a_wrong_call(fxq: Fxq, text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME:DIM|twice"):
        parse_dynamic_spec(text)
    assert fxq(*SMALL, "--dynamic", text).exit_code == 2
