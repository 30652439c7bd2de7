"""``fxq quantize``: from a model and data on disk to an ONNX file that ONNX Runtime runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import Result

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
        *("--batch-size", 2, "--recipe", "tensorrt", "--out", "resnet18.onnx"),
    )
    assert result.exit_code == 0, result.output
    assert "21 input, 8 residual, 21 weight" in result.stdout
    assert "off by" in result.stdout
    assert "dB against the float model" in result.stdout
    assert "warning: torchvision:resnet18 has random weights" in result.stderr
    assert input_shape(tmp_path / "resnet18.onnx")[1:] == [3, 64, 64]


def test_weights_reach_the_file_and_no_warning_is_given(fxq: Fxq, inputs: Path, tmp_path: Path) -> None:
    from nets_of_a_user import Small

    torch.manual_seed(3)
    model = Small().eval()
    torch.save(model.state_dict(), tmp_path / "small.pt")
    call = ("quantize", "nets_of_a_user:small", "--calib-data", inputs, "--weights", "small.pt", "--out", "small.onnx")
    result = fxq(*call, "--recipe", "onnxruntime", "--verify", "--calibrator", "max")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    assert "calibrator max" in result.stdout
    x = np.load(inputs)
    (found,) = get_runtime("onnxruntime").run(tmp_path / "small.onnx", x)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    # Other weights would be off by the size of the output itself; 8 bits cost a few hundredths of it.
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


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
    assert "against the float model, on random inputs" in result.stdout
    assert "calibrat" not in result.output
    assert ("quantized on the fly" in result.stdout) == (recipe == "dynamic")
    assert input_shape(tmp_path / "small.onnx")[1:] == [3, 12, 12]
    unknown = fxq(*call)
    assert unknown.exit_code == 1
    assert "an input for Small: give --input-shape such as 1,3,224,224" in unknown.stderr


def test_an_image_model_needs_no_shape_either(fxq: Fxq, tmp_path: Path) -> None:
    call = ("quantize", "torchvision:resnet18", "--num-classes", 5, "--image-size", 64, "--out", "resnet18.onnx")
    result = fxq(*call, "--recipe", "weight_only")
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
    np.savez(tmp_path / "x.npz", right=np.ones((4, 6), np.float32), left=np.ones((4, 4), np.float32))
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
        ({"--leave-in-float": "haed"}, "matches no module of the model; did you mean 'head'"),
        ({"--calib-data": "nowhere"}, "there is no calibration data at nowhere"),
        ({"--weights": "nowhere.pt"}, "there is no file of weights nowhere.pt"),
    ],
    ids=["directory", "suffix", "recipe", "recipe file", "calibrator", "glob", "data", "weights"],
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
