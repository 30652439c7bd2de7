"""--weights: strict, tensors only, whatever the training script wrapped them in."""

import random
from pathlib import Path

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
    ],
    ids=["plain", "state_dict", "model", "data parallel", "from before batches were counted"],
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
