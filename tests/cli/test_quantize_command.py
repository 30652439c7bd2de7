"""``fxq quantize``: from a model and data on disk to an ONNX file that ONNX Runtime runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import Result

import fxq as package
from fxq.runtimes import get_runtime

Fxq = Callable[..., Result]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four images."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 80, 80, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Eight inputs for the nets of a user."""
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32))
    return path


def input_shape(path: Path) -> list[object]:
    (found,) = onnx.load(path).graph.input
    return [size.dim_param or size.dim_value for size in found.type.tensor_type.shape.dim]


def test_a_torchvision_model_is_quantized_on_a_folder_of_images(fxq: Fxq, images: Path, tmp_path: Path) -> None:
    result = fxq(
        *("quantize", "torchvision:resnet18", "--num-classes", 5, "--calib-data", images, "--image-size", 64),
        *("--random-weights", "--batch-size", 2, "--recipe", "tensorrt", "--out", "resnet18.onnx"),
    )
    assert result.exit_code == 0, result.output
    assert "21 input, 8 residual, 21 weight" in result.stdout
    assert "off by" in result.stdout
    assert ", against the original model on " in result.stdout
    assert "warning: torchvision:resnet18 has random weights" in result.stderr
    assert input_shape(tmp_path / "resnet18.onnx")[1:] == [3, 64, 64]


def test_weights_reach_the_file_and_no_warning_is_given(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    from nets_of_a_user import Small

    torch.manual_seed(3)
    model = Small().eval()
    torch.save(model.state_dict(), tmp_path / "small.pt")
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--weights", "small.pt", "--out", "small.onnx")
    result = fxq(*call, "--recipe", "onnxruntime", "--verify", "--calibrator", "max", "--save", "small.fxq")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    assert "calibrator max" in result.stdout
    x = np.load(inputs)
    (found,) = get_runtime("onnxruntime").run(tmp_path / "small.onnx", x)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    # Other weights would be off by the size of the output itself; 8 bits cost a few hundredths of it.
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    saved = package.load(tmp_path / "small.fxq", Small())
    (again,) = get_runtime("onnxruntime").run(_exported(saved, tmp_path / "again.onnx"), x)
    assert np.array_equal(again, found)


def _exported(prepared: torch.fx.GraphModule, path: Path) -> Path:
    package.export_onnx(package.convert(prepared), path, check=False)
    return path


def test_accuracy_adds_its_passes_and_an_unknown_level_is_refused(fxq: Fxq, inputs: Path) -> None:
    given = ("quantize", "nets_of_a_user:Small", "--calib-data", inputs, "--out", "small.onnx", "--min-sqnr-db", -100)
    result = fxq(*given, "--accuracy", "fast")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("equalize_channels", "refine_ranges", "correct_bias"))
    refused = fxq(*given, "--accuracy", "fats")
    assert refused.exit_code == 1
    assert "did you mean 'fast'?" in refused.stderr


def test_max_samples_are_kept_for_what_accuracy_adds(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).standard_normal((40, 3, 12, 12)).astype(np.float32))
    given = ("quantize", "nets_of_a_user:small", "--calib-data", "inputs.npy", "--out", "small.onnx")
    assert "did not run" not in fxq(*given).stdout
    result = fxq(*given, "--max-samples", 8)
    assert result.exit_code == 0, result.output
    assert "correct_bias did not run, since" in " ".join(result.stdout.split())


def test_leave_in_float_and_explain_show_in_the_table(fxq: Fxq, inputs: Path) -> None:
    result = fxq(
        *("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "small.onnx", "--explain"),
        *("--leave-in-float", "head", "--leave-in-float", "conv"),
    )
    assert result.exit_code == 0, result.output
    assert "linear, float: rule ('head', None) leaves it in float" in " ".join(result.stdout.split())
    assert "1 input, 1 residual, 1 weight" in result.stdout


@pytest.mark.parametrize("recipe", ["dynamic", "weight_only", "weight_only_int4"])
def test_a_recipe_without_ranges_of_activations_needs_no_data(fxq: Fxq, tmp_path: Path, recipe: str) -> None:
    call = ("quantize", "nets_of_a_user:small", "--recipe", recipe, "--out", "small.onnx")
    result = fxq(*call, "--input-shape", "2,3,12,12")
    assert result.exit_code == 0, result.output
    assert "against the original model on 1 sample, random inputs" in " ".join(result.stdout.split())
    assert "calibrat" not in result.output
    assert ("quantized on the fly" in result.stdout) == (recipe == "dynamic")
    assert input_shape(tmp_path / "small.onnx")[1:] == [3, 12, 12]
    unknown = fxq(*call)
    assert unknown.exit_code == 1
    assert "an input for Small: give --input-shape such as 1,3,224,224" in unknown.stderr


def test_weights_alone_learn_from_data_where_there_is_some(fxq: Fxq, tmp_path: Path) -> None:
    from nets_of_a_user import small

    values = np.random.default_rng(0).standard_normal((40, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", values)
    given = ("nets_of_a_user:small", "--recipe", "weight_only_int4", "--calib-data", "inputs.npy")
    result = fxq("quantize", *given, "--out", "small.onnx", "--save", "small.fxq")
    assert result.exit_code == 0, result.output
    assert "round_weights" in result.stdout
    assert "calibrator" not in result.stdout  # of activations, and none was calibrated
    saved = package.convert(package.load(tmp_path / "small.fxq", small()))
    batches = [torch.from_numpy(part) for part in (values[:32], values[32:])]
    expected = package.quantize(small().eval(), batches, "weight_only_int4")
    nearest = package.quantize(small().eval(), None, "weight_only_int4", example_inputs=batches[0])
    with torch.no_grad():
        assert torch.equal(saved(batches[0]), expected(batches[0]))
        assert not torch.equal(saved(batches[0]), nearest(batches[0]))
    compared = fxq("compare", *given, "--json")
    assert compared.exit_code == 0, compared.output
    value = package.compare(small().eval(), package.load(tmp_path / "small.fxq", small()), batches)
    assert json.loads(compared.stdout)["outputs"]["output"]["mse"] == pytest.approx(
        value.outputs["output"].mse, rel=1e-4
    )


def test_an_image_model_needs_no_shape_either(fxq: Fxq, tmp_path: Path) -> None:
    call = ("quantize", "torchvision:resnet18", "--num-classes", 5, "--image-size", 64, "--out", "resnet18.onnx")
    result = fxq(*call, "--recipe", "weight_only", "--random-weights")
    assert result.exit_code == 0, result.output
    assert "21 weight" in result.stdout
    assert input_shape(tmp_path / "resnet18.onnx")[1:] == [3, 64, 64]


def test_the_batch_is_dynamic_unless_asked_otherwise(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "small.onnx")
    assert "dynamic batch" in fxq(*call).stdout
    assert isinstance(input_shape(tmp_path / "small.onnx")[0], str)
    assert "static batch" in fxq(*call, "--static-batch").stdout
    assert input_shape(tmp_path / "small.onnx") == [1, 3, 12, 12]


def test_a_model_with_two_inputs_takes_them_by_name(fxq: Fxq, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    right, left = (numbers.normal(size=(4, size)).astype(np.float32) for size in (6, 4))
    np.savez(tmp_path / "x.npz", right=right, left=left)
    result = fxq("quantize", "nets_of_a_user:Sum", "--calib-data", "x.npz", "--out", "sum.onnx")
    assert result.exit_code == 0, result.output
    assert "2 input, 2 weight" in result.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--out": "nowhere/x.onnx"}, "the directory nowhere does not exist; create it first"),
        ({"--out": "x.pt"}, "the file name must end in .onnx"),
        ({"--recipe": "tensorrrt"}, "unknown recipe 'tensorrrt'; did you mean 'tensorrt'?"),
        ({"--recipe": "mine.toml"}, "cannot read the recipe mine.toml"),
        ({"--calibrator": "maximum"}, "unknown calibrator 'maximum'; choose one of max,"),
        ({"--leave-in-float": "haed"}, "--leave-in-float haed matches no module of the model; did you mean 'head'"),
        ({"--leaf": "haed"}, "--leaf haed is no module path or class of the model; did you mean 'head'"),
        ({"--leaf": "zzz"}, "--leaf zzz is no module path or class of the model; fxq explain shows them"),
        ({"--calib-data": "nowhere"}, "there is no calibration data at nowhere"),
        ({"--weights": "nowhere.pt"}, "there is no file of weights nowhere.pt"),
    ],
    ids=[
        "directory",
        "suffix",
        "recipe",
        "recipe file",
        "calibrator",
        "glob",
        "leaf",
        "leaf unlike any",
        "data",
        "weights",
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    fxq: Fxq, inputs: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    options = {"--calib-data": str(inputs), "--out": "x.onnx", **changes}
    before = sorted(tmp_path.iterdir())
    result = fxq("quantize", "nets_of_a_user:small", *(part for option in options.items() for part in option))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr
    assert [file for file in sorted(tmp_path.iterdir()) if file.name != "__pycache__"] == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a directory that even root cannot write to")
def test_an_unwritable_directory_is_found_out_before_long_work(fxq: Fxq, inputs: Path) -> None:
    result = fxq("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "/proc/x.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot write /proc/x.onnx: ")


def test_an_array_of_the_wrong_shape_is_held_against_the_models_input(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.zeros((4, 1, 12, 12), np.float32))
    result = fxq("quantize", "nets_of_a_user:small", "--calib-data", "grey.npy", "--out", "x.onnx")
    assert result.exit_code == 1
    assert "grey.npy does not fit Small, which fails on tuple of tensor (4, 1, 12, 12) float32" in result.stderr


def test_random_weights_are_refused_unless_asked_for(fxq: Fxq, images: Path, tmp_path: Path) -> None:
    call = ("quantize", "torchvision:resnet18", "--calib-data", images, "--out", "resnet18.onnx")
    result = fxq(*call)
    assert result.exit_code == 1
    assert "torchvision:resnet18 has random weights" in result.stderr
    assert "--weights FILE, or say --random-weights" in result.stderr
    assert not (tmp_path / "resnet18.onnx").exists()
    assert "--weights gives it others" in fxq(*call, "--random-weights", "--weights", "x.pt").stderr
    own = fxq("quantize", "nets_of_a_user:small", "--calib-data", images, "--out", "x.onnx", "--random-weights")
    assert "a callable makes its own" in own.stderr


def test_inputs_are_given_by_name_and_dtype(fxq: Fxq, tmp_path: Path) -> None:
    call = ("quantize", "nets_of_a_user:Masked", "--recipe", "dynamic", "--out", "x.onnx")
    shapes = ("--input-shape", "scale:2,5,1", "--input-shape", "ids:2x5:int64")
    result = fxq(*call, *shapes)
    assert result.exit_code == 0, result.output
    inputs = onnx.load(tmp_path / "x.onnx").graph.input
    assert [(found.name, found.type.tensor_type.elem_type) for found in inputs] == [
        ("ids", onnx.TensorProto.INT64),
        ("scale", onnx.TensorProto.FLOAT),
    ]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["idz:2,5"], "there is no input 'idz'; Masked takes ids, mask, scale"),
        (["ids:2,5", "ids:2,5"], "the input 'ids' is named twice"),
        (["mask:2,5"], "Masked needs its input 'ids' too"),
        (["2,5"] * 4, "there is no input left for it; Masked takes ids, mask, scale"),
        (["2,5"], "does not fit Masked, which fails on tuple of tensor (2, 5) float32"),
    ],
    ids=["unknown", "twice", "missing", "too many", "wrong dtype"],
)
def test_inputs_that_the_model_does_not_take_are_named(fxq: Fxq, shapes: list[str], message: str) -> None:
    options = [part for shape in shapes for part in ("--input-shape", shape)]
    result = fxq("quantize", "nets_of_a_user:Masked", "--recipe", "dynamic", "--out", "x.onnx", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_shape_and_data_must_agree(fxq: Fxq, inputs: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "x.onnx", "--input-shape")
    assert fxq(*call, "1,3,12,12").exit_code == 0  # the number of samples is the data's own
    for shape in ("1,3,8,8", "x:1,3,12,12:float64"):
        result = fxq(*call, shape)
        assert result.exit_code == 1
        assert f"--input-shape {shape} and --calib-data {inputs} do not agree, which has tensor (8, 3" in result.stderr


def test_a_model_of_bytes_gets_them(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8))
    call = ("quantize", "nets_of_a_user:OfBytes", "--calib-data", "x.npy", "--out", "x.onnx")
    assert "taken for images as files would be" in fxq(*call).stderr
    result = fxq(*call, "--input-shape", "1,3,8,8:uint8")
    assert result.exit_code == 0, result.output
    assert onnx.load(tmp_path / "x.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("option", ["--image-size=8", "--resize=300", "--skip-bad-images"])
def test_options_for_images_are_refused_for_arrays(fxq: Fxq, inputs: Path, option: str) -> None:
    result = fxq("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "x.onnx", option)
    assert result.exit_code == 2
    assert "it is for images in files" in result.stderr


def test_grey_and_colour_are_told_apart(fxq: Fxq, images: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--calib-data", images, "--out", "x.onnx", "--image-size", 16)
    assert "0.5,0.5,0.5 and 0.5,0.5,0.5 for colour" in fxq(*call, "--mean", "0.5").stderr
    assert "three numbers keep colour" in fxq(*call, "--mean", "0.5", "--std", "0.5").stderr


def test_islands_are_files_in_a_folder(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    call = ("quantize", "nets_of_a_user:Chooses", "--calib-data", "x.npy", "--untraceable", "islands", "--out")
    result = fxq(*call, "files")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["head.onnx"]
    assert "head.onnx" in result.stdout
    assert "quality of head" in result.stdout
    assert "the whole is no file" in result.stdout
    refused = fxq(*call, "model.onnx")
    assert refused.exit_code == 1
    assert "so --out must name a folder" in refused.stderr
    whole = fxq("quantize", "nets_of_a_user:small", *call[2:4], "--untraceable", "islands", "--out", "files")
    assert whole.exit_code == 1
    listed = fxq("explain", "nets_of_a_user:Chooses", "--untraceable", "islands")
    assert "give --input-shape" in listed.stderr


def test_a_front_end_can_be_asked_for(fxq: Fxq) -> None:
    call = ("explain", "nets_of_a_user:small", "--frontend")
    traced = fxq(*call, "export", "--input-shape", "1,3,8,8")
    assert traced.exit_code == 0, traced.output
    assert "traced by torch.export, as asked for" in traced.stdout
    assert "--frontend export runs the model: give --input-shape" in fxq(*call, "export").stderr
    assert "it is auto, symbolic or export, got 'fx'" in fxq(*call, "fx").stderr


@pytest.mark.filterwarnings("always:kept whole in float")
def test_code_that_cannot_be_traced_is_left_whole(fxq: Fxq, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    call = ("quantize", "nets_of_a_user:Chooses", "--calib-data", "x.npy", "--out", "x.onnx")
    assert "name the module as a leaf: --leaf 'choice'" in fxq(*call).stderr
    listed = fxq("explain", "nets_of_a_user:Chooses", "--leaf", "choice", "--json")
    assert listed.exit_code == 0, listed.output
    assert '"linear"' in listed.stdout
    assert "as with --untraceable float" in fxq(*call).stderr
    kept = fxq("explain", "nets_of_a_user:Chooses", "--untraceable", "float", "--input-shape", "2,4")
    assert kept.exit_code == 0, kept.output
    assert "warning: kept whole in float, for it does not trace: 'choice': " in kept.stderr
    assert "--untraceable" in fxq(*call, "--untraceable", "flaot").stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "double",
            "'conv.weight' of Small is in float64, which ONNX's QuantizeLinear does not take: return model.float",
        ),
        ("Lazy", "'conv' is a lazy layer (LazyConv2d) whose weights were never made: give --weights"),
    ],
    ids=["float64", "lazy"],
)
def test_a_model_that_makes_no_file_is_refused_before_any_work(fxq: Fxq, inputs: Path, name: str, message: str) -> None:
    result = fxq("quantize", f"nets_of_a_user:{name}", "--calib-data", inputs, "--out", "x.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_channels_last_is_kept(fxq: Fxq, inputs: Path) -> None:
    result = fxq("quantize", "nets_of_a_user:channels_last", "--calib-data", inputs, "--out", "x.onnx")
    assert result.exit_code == 0, result.output


def test_one_batch_is_counted_in_the_singular(fxq: Fxq, inputs: Path) -> None:
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--out", "x.onnx")
    assert "calibrating on 1 batch\n" in fxq(*call).stderr
    assert "calibrating on 2 batches\n" in fxq(*call, "--batch-size", 4).stderr


def test_inputs_by_keyword_only_are_taken_by_name(fxq: Fxq, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", left=np.ones((4, 4), np.float32), right=np.random.default_rng(0).random((4, 6)))
    result = fxq(
        *("quantize", "nets_of_a_user:SumByKeyword", "--calib-data", "data.npz", "--recipe", "dynamic"),
        *("--input-shape", "left:4,4", "--input-shape", "right:4,6", "--out", "sum.onnx"),
    )
    assert result.exit_code == 0, result.output
    assert [value.name for value in onnx.load(tmp_path / "sum.onnx").graph.input] == ["left", "right"]
