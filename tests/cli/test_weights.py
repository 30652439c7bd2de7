"""--weights: strict, tensors only, whatever the training script wrapped them in."""

import argparse
import collections
import fractions
import json
import pathlib
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxq import ModelError
from fxq.cli.weights import load_weights


def net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, outputs))


def trained() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return net().state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "callbacks": {}},
        lambda state: {f"_orig_mod.model.net._orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {key.replace("0.", "0._orig_mod."): value for key, value in state.items()},
        lambda state: {"generator": state, "step": 3},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
    ],
    ids=[
        *(
            "plain",
            "state_dict",
            "model",
            "data parallel",
            "from before batches were counted",
            "Lightning",
            "held twice",
        ),
        *("a compiled layer", "a name of their own", "AveragedModel"),
    ],
)
def test_weights_are_found_wherever_training_scripts_put_them(wrap: object, tmp_path: Path) -> None:
    torch.save(wrap(trained()), tmp_path / "net.pt")  # type: ignore[operator]
    model = net()
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model[0].weight, trained()["0.weight"])  # type: ignore[index]


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "net.safetensors")
    model = net()
    load_weights(model, tmp_path / "net.safetensors")
    assert torch.equal(model[3].bias, trained()["3.bias"])  # type: ignore[index]


PLAIN = {
    "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(layers=[1, 2])),
    "scalar": np.float64(0.5),
    "count": np.int64(3),
    "array": np.arange(3, dtype=np.float16),
    "names": np.array(["a", "b"]),
    "flag": np.bool_(True),
    "path": Path("runs") / "1",
    "pure": pathlib.PureWindowsPath("C:/runs"),
    "losses": collections.defaultdict(list, train=[0.1]),
    "counts": collections.Counter("ab"),
    "ordered": collections.OrderedDict(a=1),
    "slice": slice(1, 2),
    "set": {1, 2},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_beside_the_weights_is_passed_over(name: str, tmp_path: Path) -> None:
    torch.save({"model": trained(), name: PLAIN[name]}, tmp_path / "net.pt")
    model = net()
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model[0].weight, trained()["0.weight"])  # type: ignore[index]
    torch.save({"args": argparse.Namespace()}, tmp_path / "args.pt")
    with pytest.raises(pickle.UnpicklingError):  # only while fxq reads
        torch.load(tmp_path / "args.pt", weights_only=True)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_either_numpy_are_plain_data(module: str, tmp_path: Path) -> None:
    torch.save({"model": trained(), "best": np.float64(0.5)}, tmp_path / "net.pt")
    written = np.float64(0).__reduce__()[0].__module__  # type: ignore[union-attr]
    with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(tmp_path / "other.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry).replace(written.encode(), module.encode()))
    model = net()
    load_weights(model, tmp_path / "other.pt")
    assert all(torch.equal(value, trained()[name]) for name, value in model.state_dict().items())


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_what_would_run_code_is_named_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": trained(), "extra": Touch(tmp_path / "ran"), "made": fractions.Fraction(1)}, tmp_path / "a.pt")
    with pytest.raises(
        ModelError, match=r"a\.pt .*\(.*fractions\.Fraction.*\), which fxq does not unpickle.*torch\.save"
    ):
        load_weights(net(), tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema_state_dict", "ema"])
def test_a_moving_average_is_taken_and_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fxq")
    average = {f"module.{key}": value + 1 for key, value in trained().items()}
    torch.save({"model": trained(), name: average}, tmp_path / "net.pt")
    model = net()
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model[0].weight, trained()["0.weight"] + 1)  # type: ignore[index]
    assert f"the weights are those of the moving average under '{name}', not those under 'model'" in caplog.text
    # Not weights by name: torch_ema keeps a list.
    torch.save({"model": trained(), name: {"decay": 0.9, "shadow_params": [torch.zeros(1)]}}, tmp_path / "net.pt")
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model[0].weight, trained()["0.weight"])  # type: ignore[index]


def test_what_lies_outside_of_the_model_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fxq")
    lightning = {f"model.{key}": value for key, value in trained().items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": lightning}, tmp_path / "net.ckpt")
    load_weights(net(), tmp_path / "net.ckpt")
    assert "taken is what lies under 'model.'; left out, as no part of Sequential: loss.weight" in caplog.text
    lightning.pop("model.0.weight")
    torch.save({"state_dict": lightning}, tmp_path / "net.ckpt")
    with pytest.raises(ModelError, match=r"does not fit Sequential: 1 missing: 0\.weight\."):
        load_weights(net(), tmp_path / "net.ckpt")


def test_two_sets_of_weights_that_fit_are_refused(tmp_path: Path) -> None:
    both = {f"{holder}.{key}": value for holder in ("model", "net") for key, value in trained().items()}
    torch.save(both, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"several sets of weights that fit, model\.\* and net\.\*"):
        load_weights(net(), tmp_path / "net.pt")


def test_a_name_that_the_model_has_stays(tmp_path: Path) -> None:
    def held() -> nn.Module:
        return nn.ModuleDict({"model": net(), "module": nn.ModuleDict({"model": net()})})

    expected = held()
    torch.save({f"module.{key}": value for key, value in expected.state_dict().items()}, tmp_path / "net.pt")
    model = held()
    load_weights(model, tmp_path / "net.pt")
    assert all(torch.equal(expected.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("held", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
@pytest.mark.parametrize("is_held_in_file", [True, False])
def test_a_model_that_is_held_by_another_takes_its_weights_either_way(
    held: Callable[[nn.Module], nn.Module], is_held_in_file: bool, tmp_path: Path
) -> None:
    expected, model = net(), net()
    torch.save((held(expected) if is_held_in_file else expected).state_dict(), tmp_path / "net.pt")
    load_weights(held(model), tmp_path / "net.pt")
    assert torch.equal(model[0].weight, expected[0].weight)  # type: ignore[index]


def test_a_part_that_is_called_like_a_compiled_one_stays(tmp_path: Path) -> None:
    expected, model = nn.ModuleDict({"_orig_mod": net()}), nn.ModuleDict({"_orig_mod": net()})
    torch.save(expected.state_dict(), tmp_path / "net.pt")
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model["_orig_mod"][0].weight, expected["_orig_mod"][0].weight)  # type: ignore[index]


def test_tied_weights_may_be_there_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    expected, model = tied(), tied()
    save_file({"0.weight": expected[0].weight}, tmp_path / "net.safetensors")  # type: ignore[index]
    load_weights(model, tmp_path / "net.safetensors")
    assert torch.equal(model[1].weight, expected[0].weight)  # type: ignore[index]


def shards(folder: Path, weight_map: object = None) -> Path:
    """Write the weights in two files, and their index."""
    state = trained()
    first = {key: value for key, value in state.items() if key.startswith("0")}
    save_file(first, folder / "net-1.safetensors")
    save_file({key: value for key, value in state.items() if key not in first}, folder / "net-2.safetensors")
    files = {key: f"net-{1 if key in first else 2}.safetensors" for key in state}
    index = folder / "net.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files if weight_map is None else weight_map}))
    return index


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    model = net()
    load_weights(model, shards(tmp_path))
    assert all(torch.equal(trained()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"0.weight": "net-9.safetensors"}, r"names 1 files, and beside it net-9\.safetensors is not there"),
        ({"0.weight": "../net-1.safetensors"}, r"'\.\./net-1\.safetensors', which is no \.safetensors file beside it"),
        ({"0.weight": "net-1.bin"}, r"'net-1\.bin', which is no \.safetensors file beside it"),
        ({"3.weight": "net-1.safetensors"}, r"says that 3\.weight is in net-1\.safetensors, where it is not"),
        ({"0.weight": 1}, "is no index of weights"),
        ([], "is no index of weights"),
    ],
    ids=["absent", "elsewhere", "pickled", "in another file", "a number", "no names"],
)
def test_an_index_that_is_wrong_is_named(weight_map: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_weights(net(), shards(tmp_path, weight_map))


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = trained()
    state["4.weight"] = state.pop("3.weight")
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"1 missing: 3\.weight; 1 unexpected: 4\.weight"):
        load_weights(net(), tmp_path / "net.pt")
    torch.save(trained(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"2 of another shape: 3\.weight \(2, 3\) for \(5, 3\), 3\.bias .*--num-class"):
        load_weights(net(outputs=5), tmp_path / "net.pt")


def test_a_model_keeps_its_weights_when_others_do_not_fit(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(3, 1, 3, 3)}, tmp_path / "net.pt")
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="missing"):
        load_weights(model, tmp_path / "net.pt")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_pickled_model_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"holds more than tensors.*torch\.save\(model\.state_dict\(\), path\)"):
        load_weights(net(), tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_file_of_something_else_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file of weights"):
        load_weights(net(), tmp_path / name)
    (tmp_path / name).write_text("not weights at all")
    with pytest.raises(ModelError, match=name):
        load_weights(net(), tmp_path / name)


def test_a_file_without_weights_by_name_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="a dict of epoch, loss"):
        load_weights(net(), tmp_path / "net.pt")


ODD = {
    "sparse": lambda weight: weight.to_sparse(),
    "meta": lambda weight: weight.to("meta"),
    "complex": lambda weight: weight.to(torch.complex64),
    "int8": lambda weight: weight.to(torch.int8),
    "bool": lambda weight: weight > 0,
}


@pytest.mark.filterwarnings("ignore:.*sparse tensor invariants")
@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_tensors_that_are_no_plain_weights_are_named(change: object, tmp_path: Path) -> None:
    torch.save({**trained(), "3.weight": change(trained()["3.weight"])}, tmp_path / "net.pt")  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"net\.pt holds what are no plain weights: 3\.weight \(.*convert them"):
        load_weights(net(), tmp_path / "net.pt")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:.*quantize.*deprecated")
def test_quantized_weights_are_named(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(trained()["3.weight"], 0.1, 0, torch.qint8)
    torch.save({**trained(), "3.weight": weight}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"3\.weight \(quantized\)"):
        load_weights(net(), tmp_path / "net.pt")


@pytest.mark.parametrize("key", [1, None, b"0.weight"], ids=str)
def test_names_that_are_no_texts_are_refused(key: object, tmp_path: Path) -> None:
    for others in ({}, trained()):
        torch.save({**others, key: torch.zeros(1)}, tmp_path / "net.pt")
        with pytest.raises(ModelError, match="weights whose names are no texts"):
            load_weights(net(), tmp_path / "net.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_of_any_kind_is_an_error_of_the_command_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pt")
    if kind == "safetensors":
        save_file(trained(), path)
    else:
        torch.save(trained(), path, _use_new_zipfile_serialization=kind == "zip")
    whole, choose = path.read_bytes(), random.Random(0)
    damaged = [whole[:length] for length in (0, 1, 9, 100, len(whole) // 2, len(whole) - 9)]
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(4):
            content[choose.randrange(min(len(content), 1500))] = choose.randrange(256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            load_weights(net(), path)
        except ModelError:
            refused += 1  # anything else fails the test
    assert refused > 10


def test_a_model_whose_shapes_are_not_known_yet_is_refused(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"2 weights of the model have no shape yet \(weight, bias\): run it once"):
        load_weights(nn.LazyLinear(3), tmp_path / "net.pt")
