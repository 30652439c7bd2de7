"""--calib-data: folders of images and arrays, and what is said about unusable ones."""

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from fxq import ModelError
from fxq.cli.calibration_data import DataSource, calibration_batches
from fxq.cli.images import ImageOptions
from fxq.cli.spread import evenly_spaced


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def test_images_are_prepared_as_torchvision_prepares_them(tmp_path: Path) -> None:
    write_images(tmp_path / "cats", 1, size=(300, 200))
    (batch,) = calibration_batches(DataSource(tmp_path), nn.Identity())
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    # The preset antialiases on tensors and we on images, whose pixels are whole numbers: 1/255 of a value, over std.
    expected = preset(Image.open(tmp_path / "cats" / "0.png"))
    torch.testing.assert_close(batch[0], expected, atol=1 / 255 / 0.224, rtol=0)


def test_images_of_subfolders_come_in_batches_and_every_folder_has_a_part(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        write_images(tmp_path / folder, 4)
    source = DataSource(tmp_path, batch_size=2, num_samples=3, images=ImageOptions(16, 20))
    batches = calibration_batches(source, nn.Identity())
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    assert [file.parent.name for file in batches.dataset.files] == ["a", "b", "c"]  # type: ignore[attr-defined]


def test_a_single_mean_makes_images_grey(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    source = DataSource(tmp_path, images=ImageOptions(16, None, (0.5,), (0.25,)))
    (batch,) = calibration_batches(source, nn.Identity())
    assert batch.shape == (1, 1, 16, 16)


@pytest.fixture
def bad_images(tmp_path: Path) -> Path:
    """Four images, of which one is half, one is no image, and one has 16 bits."""
    write_images(tmp_path, 1)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.jpg").write_text("no image")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "3.tif")
    return tmp_path


def test_all_bad_images_are_named_at_once(bad_images: Path) -> None:
    with pytest.raises(ModelError) as caught:
        list(calibration_batches(DataSource(bad_images, batch_size=1), nn.Identity()))
    message = str(caught.value)
    assert "1.png is no readable image: " in message
    assert "2.jpg is no readable image" in message
    assert "3.tif is no image of 8 bits: its mode is I;16" in message  # converting it would make it white
    assert message.endswith("repair or remove them, or go on without, with --skip-bad-images")


def test_of_many_bad_images_some_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    for index in range(13):
        (tmp_path / f"{index:02}.png").write_text("no image")
    with pytest.raises(ModelError, match=r"09\.png is no readable image[^;]*; and 3 more; repair"):
        list(calibration_batches(DataSource(tmp_path), nn.Identity()))


def test_bad_images_are_skipped_where_that_is_asked_for(bad_images: Path, caplog: pytest.LogCaptureFixture) -> None:
    (batch,) = calibration_batches(DataSource(bad_images, skip_bad_images=True), nn.Identity())
    assert len(batch) == 1
    assert "skipped 3 of 4 images: " in caplog.text
    assert "2.jpg" in caplog.text
    (bad_images / "0.png").unlink()
    with pytest.raises(ModelError, match="none of 3 images can be read: "):
        calibration_batches(DataSource(bad_images, skip_bad_images=True), nn.Identity())


def test_one_image_and_a_glob_are_calibration_data(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("")
    assert len(calibration_batches(DataSource(tmp_path / "0.png", 1), nn.Identity())) == 1
    assert len(calibration_batches(DataSource(tmp_path / "*.png", 1), nn.Identity())) == 3
    with pytest.raises(ModelError, match=r"matches 'notes\.txt' too, and a glob names images"):
        calibration_batches(DataSource(tmp_path / "*"), nn.Identity())
    with pytest.raises(ModelError, match="there is no calibration data at"):
        calibration_batches(DataSource(tmp_path / "*.jpg"), nn.Identity())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_images_and_arrays_get_the_dtype_of_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    write_images(tmp_path, 1)
    array = np.full((2, 2), 1 / 3)
    np.save(tmp_path / "x.npy", array)
    model = nn.Linear(2, 2).to(dtype)
    (batch,) = calibration_batches(DataSource(tmp_path), model)
    ((rows,),) = calibration_batches(DataSource(tmp_path / "x.npy"), model)
    assert batch.dtype is dtype
    assert torch.equal(rows, torch.from_numpy(array).to(dtype))  # float64 keeps its digits


def test_bytes_are_scaled_as_images_in_files_are(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1, size=(16, 16))
    pixels = np.array(Image.open(tmp_path / "images" / "0.png"))[None]
    options = ImageOptions(16, 16)
    (expected,) = calibration_batches(DataSource(tmp_path / "images", images=options), nn.Identity())
    np.save(tmp_path / "last.npy", pixels)
    torch.save(torch.from_numpy(pixels).permute(0, 3, 1, 2), tmp_path / "first.pt")
    for name in ("last.npy", "first.pt"):
        ((found,),) = calibration_batches(DataSource(tmp_path / name, images=options), nn.Identity())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # the same sums in another order


def test_bytes_stay_bytes_where_the_dtype_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 3, 4, 4), 200, np.uint8))
    ((found,),) = calibration_batches(DataSource(tmp_path / "x.npy"), nn.Identity(), {0: "uint8"})
    assert found.dtype is torch.uint8


def test_a_file_of_torch_holds_one_input_or_inputs_by_name(tmp_path: Path) -> None:
    torch.save({"right": torch.ones(3, 2), "left": torch.zeros(3, 2)}, tmp_path / "x.pt")
    ((left, right),) = calibration_batches(DataSource(tmp_path / "x.pt"), TwoInputs())
    assert (left.sum(), right.sum()) == (0, 6)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch's, of what the file holds
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2, 2)], "holds a list: save one tensor with all samples"),
        ({"x": 3}, "holds a dict: save one tensor"),
        (nn.Linear(2, 2), "holds more than tensors, which fxq does not unpickle"),
        (torch.zeros(2, 2).to_sparse(), "is a sparse or quantized tensor"),
        (torch.zeros(2, 2, dtype=torch.complex64), r"has dtype torch\.complex64"),
    ],
    ids=["list", "number", "model", "sparse", "complex"],
)
def test_a_file_of_torch_that_holds_no_inputs_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=message):
        calibration_batches(DataSource(tmp_path / "x.pt"), nn.Linear(2, 2))


def test_an_array_is_split_into_batches_and_cast_to_the_models_dtype(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float64).reshape(10, 2))
    batches = list(calibration_batches(DataSource(tmp_path / "x.npy", 4, 5), nn.Linear(2, 2)))
    assert torch.equal(torch.cat([batch[0] for batch in batches])[:, 0], torch.tensor([0.0, 4, 8, 12, 16]))
    assert batches[0][0].dtype is torch.float32


def test_integer_inputs_stay_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((3, 5), dtype=np.int64))
    ((ids,),) = calibration_batches(DataSource(tmp_path / "ids.npy"), nn.Embedding(4, 4))
    assert ids.dtype is torch.int64


def test_named_arrays_become_the_inputs_of_that_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", right=np.ones((3, 2), np.float32), left=np.zeros((3, 2), np.float32))
    ((left, right),) = calibration_batches(DataSource(tmp_path / "x.npz"), TwoInputs())
    assert (left.sum(), right.sum()) == (0, 6)


def test_a_single_named_array_is_the_first_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", anything=np.zeros((3, 2), np.float32))
    assert len(calibration_batches(DataSource(tmp_path / "x.npz"), nn.Identity())) == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.uint8), "dtype uint8; models take floating point inputs, scaled as in training"),
        (np.zeros((0, 2), np.float32), "the same number of samples, at least 1"),
        (np.float32(1), "the same number of samples, at least 1"),
    ],
    ids=["bytes", "empty", "a number"],
)
def test_an_array_that_is_no_input_is_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ModelError, match=message):
        calibration_batches(DataSource(tmp_path / "x.npy"), nn.Linear(2, 2))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="holds no plain numpy array"):
        calibration_batches(DataSource(tmp_path / "x.npy"), nn.Linear(2, 2))


def test_arrays_of_other_names_than_the_inputs_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 2)), labels=np.zeros(3))
    with pytest.raises(ModelError, match="has the arrays images, labels, and the model takes left, right"):
        calibration_batches(DataSource(tmp_path / "x.npz"), TwoInputs())


class ManyInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, labels: object = None) -> Tensor:
        return a


def test_arrays_stand_at_their_own_inputs_and_defaults_between_them(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, c=np.ones((3, 2), np.int64), labels=np.zeros(3), a=np.zeros((3, 2)))
    a, b, c = calibration_batches(DataSource(path, batch_size=3), ManyInputs())[0]  # type: ignore[index]
    assert (a.sum(), b, c.sum()) == (0, None, 6)
    np.savez(path, b=np.ones((3, 2)))
    with pytest.raises(ModelError, match="ManyInputs needs its input 'a' too"):
        calibration_batches(DataSource(path), ManyInputs())


def test_labels_that_the_model_needs_are_its_input(tmp_path: Path) -> None:
    class Denoiser(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x

    np.savez(tmp_path / "x.npz", label=np.ones(3, np.int64), x=np.zeros((3, 2)))
    (batch,) = calibration_batches(DataSource(tmp_path / "x.npz"), Denoiser())
    assert len(batch) == 2


def test_missing_and_empty_data_is_named(tmp_path: Path) -> None:
    for path in ("nowhere", "nowhere.npy"):
        with pytest.raises(ModelError, match="there is no calibration data at"):
            calibration_batches(DataSource(tmp_path / path), nn.Identity())
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match="there is no image in"):
        calibration_batches(DataSource(tmp_path), nn.Identity())
    with pytest.raises(ModelError, match=r"a \.npy or an \.npz file, not 'notes\.txt'"):
        calibration_batches(DataSource(tmp_path / "notes.txt"), nn.Identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "take one number, or three, each"),
        ({"mean": (0.5,)}, "take one number, or three, each"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"size": 224, "resize": 200}, "--resize 200 leaves no 224 pixels"),
    ],
    ids=["two channels", "unlike lengths", "division by zero", "crop beyond the image"],
)
def test_image_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ImageOptions(**options)  # type: ignore[arg-type]


def test_samples_are_evenly_spaced() -> None:
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 8) == [0, 1, 2]


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return how a .npy file begins."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


CLAIMS = {
    "terabytes": header((2**40, 3)), "overflow": header((2**62, 2**62)), "negative": header((-1, 3)),
    "more than there is": header((100, 3)) + b"1234", "no header": b"", "half a header": header((3, 3))[:40],
    "a long header": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000,
    "a broken header": header((3, 3)).replace(b"}", b"("),
}  # fmt: skip


@pytest.mark.parametrize("content", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_that_is_not_what_it_claims_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    with pytest.raises(ModelError, match=rf"x\.{suffix} holds (no plain numpy array|what is no numpy array)"):
        calibration_batches(DataSource(path), nn.Linear(3, 2))


def test_a_small_file_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((25_000_100, 1)) + bytes(100_000_400))
    with pytest.raises(ModelError, match=r"x\.npy would unpack \d+ bytes to 100\d+, .*write it with np\.savez"):
        calibration_batches(DataSource(tmp_path / "x.npz"), nn.Linear(1, 1))


def test_a_damaged_archive_is_refused_whatever_is_damaged(tmp_path: Path) -> None:
    path, choose = tmp_path / "x.npz", random.Random(0)
    np.savez_compressed(path, x=np.arange(6, dtype=np.float32).reshape(3, 2))
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[choose.randrange(len(content))] = choose.randrange(256)
        path.write_bytes(content)
        try:
            calibration_batches(DataSource(path), nn.Linear(2, 2))
        except ModelError:
            refused += 1  # anything else fails the test
    assert refused > 100


def test_what_lies_beside_arrays_in_an_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match=r"holds what is no numpy array: readme\.txt"):
        calibration_batches(DataSource(tmp_path / "x.npz"), nn.Linear(2, 2))


def test_arrays_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[3], [2]], dtype=">i8"))
    ((ids,),) = calibration_batches(DataSource(tmp_path / "x.npy"), nn.Embedding(4, 4))
    assert ids.tolist() == [[3], [2]]
