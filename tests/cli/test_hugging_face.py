"""``hf:DIRECTORY``: transformers from disk, strictly; nothing is downloaded, and no code of the directory is run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import Result

from fxq import ModelError
from fxq.cli.hugging_face import load_hugging_face
from fxq.cli.models import ModelSource, load_model
from fxq.runtimes import get_runtime

Fxq = Callable[..., Result]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def small_bert() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=50, num_labels=3, max_position_embeddings=32)
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small_bert().save_pretrained(folder)
    return folder


@pytest.fixture
def bert(saved: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "bert"))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """What a tokenizer makes of eight sentences, and their labels."""
    path, numbers = tmp_path / "words.npz", np.random.default_rng(0)
    mask = np.ones((8, 12), np.int64)
    mask[4:, 8:] = 0
    labels = np.zeros(8, np.int64)
    np.savez(path, labels=labels, attention_mask=mask, input_ids=numbers.integers(5, 50, (8, 12)))
    return path


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_directory_is_quantized_on_what_a_tokenizer_made(fxq: Fxq, bert: Path, words: Path, tmp_path: Path) -> None:
    result = fxq("quantize", f"hf:{bert}", "--calib-data", words, "--recipe", "onnxruntime", "--out", "bert.onnx")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    assert "words.npz: left out, as what the outputs are compared with in training: labels" in result.stderr
    assert "14 of 14 convolutions and linear layers in int8" in result.stdout
    graph = onnx.load(tmp_path / "bert.onnx").graph
    assert [one.name for one in graph.input] == ["input_ids", "attention_mask"]
    assert [one.name for one in graph.output] == ["logits"]
    with np.load(words) as arrays:
        inputs = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    (found,) = get_runtime("onnxruntime").run(tmp_path / "bert.onnx", inputs)
    with torch.no_grad():
        expected = small_bert()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    # Other weights would be off by the size of the output itself; 8 bits cost a few hundredths of it.
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_inputs_between_those_that_are_given_have_their_defaults(fxq: Fxq, bert: Path) -> None:
    call = ("quantize", f"hf:{bert}", "--recipe", "dynamic", "--out", "bert.onnx", "--output-names", "scores")
    shapes = ("--input-shape", "input_ids:1x9:int64", "--input-shape", "position_ids:1x9:int64")
    result = fxq(*call, *shapes, "--static-batch")
    assert result.exit_code == 0, result.output
    assert [one.name for one in onnx.load("bert.onnx").graph.input] == ["input_ids", "position_ids"]


def test_several_files_of_weights_are_one_model(tmp_path: Path) -> None:
    expected = small_bert()
    expected.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    found = load_model(ModelSource(f"hf:{tmp_path / 'shards'}"))
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in expected.state_dict().items())
    assert not found.training


def test_a_configuration_alone_has_random_weights_and_takes_others(fxq: Fxq, bert: Path, words: Path) -> None:
    call = ("quantize", f"hf:{bert / 'config.json'}", "--calib-data", words, "--out", "bert.onnx")
    assert "config.json has random weights" in fxq(*call).stderr
    result = fxq(*call, "--random-weights")
    assert result.exit_code == 0, result.output
    assert "warning: hf:" in result.stderr
    result = fxq("quantize", f"hf:{bert}", *call[2:], "--random-weights")
    assert "the directory holds its own" in result.stderr
    trained = load_model(ModelSource(f"hf:{bert / 'config.json'}", bert / "model.safetensors"))
    assert torch.equal(trained.classifier.weight, small_bert().classifier.weight)  # type: ignore[union-attr]
    (bert / "model.safetensors").unlink()
    assert ModelSource(f"hf:{bert}").has_random_weights


def test_explain_needs_no_weights(fxq: Fxq, bert: Path) -> None:
    result = fxq("explain", f"hf:{bert / 'config.json'}", "--input-shape", "input_ids:1x8:int64")
    assert result.exit_code == 0, result.output
    assert "14 of 14 convolutions and linear layers in int8" in result.stdout


def test_a_decoder_is_made_in_float32_and_without_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fxq")
    config = transformers.LlamaConfig(**SMALL, vocab_size=50)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    model = load_model(ModelSource(f"hf:{tmp_path / 'llama'}"))
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert "past_key_values" not in model(torch.ones(1, 4, dtype=torch.int64))
    assert "without the cache" in caplog.text
    assert "the weights are bfloat16, and taken as float32" in caplog.text


def test_no_code_of_the_directory_is_run(bert: Path) -> None:
    change_config(bert, auto_map={"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"})
    (bert / "code.py").write_text("raise SystemExit('it was run')")
    assert isinstance(load_hugging_face(str(bert), with_weights=True), transformers.BertForSequenceClassification)
    change_config(bert, model_type="nobodys")
    with pytest.raises(ModelError, match=r"'nobodys' model, which transformers .* does not have: code .* is not run"):
        load_hugging_face(str(bert), with_weights=True)


def test_kernels_of_others_give_way_to_those_of_torch(bert: Path) -> None:
    change_config(bert, attn_implementation="somebody/attention")
    model = load_hugging_face(str(bert), with_weights=True)
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def repo_exists(*_args: object, **_kwargs: object) -> bool:
        asked.append(huggingface_hub.is_offline_mode())
        raise huggingface_hub.errors.OfflineModeIsEnabled

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_exists", repo_exists)
    names = {
        "model_type": "detr",
        "backbone": "somebody/net",
        "use_timm_backbone": False,
        "architectures": ["DetrModel"],
    }
    (tmp_path / "config.json").write_text(json.dumps(names))
    with pytest.raises(ModelError, match=r"config\.json is no configuration of a 'detr' model: OfflineModeIsEnabled"):
        load_hugging_face(str(tmp_path), with_weights=True)
    assert asked == [True]
    assert not huggingface_hub.is_offline_mode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["BertForSequenceClasification"]},
            r"the class 'BertFor.*did you mean BertForSequenceClassif",
        ),
        ({"architectures": ["pipeline"]}, "the class 'pipeline', which is no model of transformers"),
        ({"architectures": ["BertConfig"]}, "the class 'BertConfig', which is no model of transformers"),
        ({"architectures": None}, r'names no class of the model: add "architectures" to it, such as \["BertModel"\]'),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, r"names 2 classes \(BertModel, BertForMaskedLM\)"),
        ({"model_type": "brt"}, r"a 'brt' model, which transformers .* does not have \(did you mean bert"),
        ({"model_type": None}, 'names no "model_type"'),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized already"),
        ({"num_hidden_layers": "many"}, "is no configuration of a 'bert' model"),
        ({"hidden_act": "nothing"}, "BertForSequenceClassification cannot be made"),
        ({"num_labels": 4, "id2label": None}, r"2 of another shape: classifier\.bias \(3,\) for \(4,\), classifier"),
        ({"num_hidden_layers": 3}, r"do not fit .* 16 missing: bert\.encoder\.layer\.2\."),
        ({"num_hidden_layers": 1}, r"16 of layers that the configuration has not: bert\.encoder\.layer\.1\."),
    ],
)
def test_a_configuration_that_is_wrong_is_named(changes: dict[str, object], message: str, bert: Path) -> None:
    change_config(bert, **changes)
    with pytest.raises(ModelError, match=message):
        load_hugging_face(str(bert), with_weights=True)


def test_weights_that_are_missing_are_named(bert: Path) -> None:
    change_weights(bert, lambda weights: weights.pop("classifier.weight"))
    with pytest.raises(ModelError, match=r"do not fit its config\.json, .*: 1 missing: classifier\.weight"):
        load_hugging_face(str(bert), with_weights=True)


def test_weights_without_use_are_named(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    # As in bert-base-uncased, whose directory names one of the heads that it was trained with.
    change_weights(bert, lambda weights: weights.update({"cls.seq_relationship.weight": torch.zeros(2, 16)}))
    load_hugging_face(str(bert), with_weights=True)
    assert "1 weights that a BertForSequenceClassification has no use for: cls.seq_relationship.weight" in caplog.text


def test_a_directory_of_something_else_is_named(bert: Path, tmp_path: Path) -> None:
    def refused(name: object, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load_model(ModelSource(f"hf:{name}"))

    refused(
        "google-bert/bert-base-uncased", "'google-bert/bert-base-uncased' is none. Nothing is downloaded: .*hf down"
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty is no Hugging Face model: it has no config\.json \(nothing\)")
    (bert / "model.safetensors").write_bytes(b"damaged")
    refused(bert, r"BertForSequenceClassification cannot be made: SafetensorError")
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    refused(bert, r"has its weights in pytorch_model\.bin, and read is model\.safetensors or its index: .*--weights")
    (bert / "adapter_config.json").write_text("{}")
    refused(bert, "holds an adapter of a model: merge both")
    (bert / "config.json").write_text("[]")
    refused(bert / "config.json", "is no configuration of a Hugging Face model")
    (bert / "config.json").write_text("{")
    refused(bert / "config.json", r"config\.json is no configuration of a model: JSONDecodeError")
    with pytest.raises(ModelError, match="--num-classes is for torchvision and timm"):
        load_model(ModelSource(f"hf:{bert}", num_classes=3))


def test_transformers_is_an_extra(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"needs transformers: pip install 'fxq\[hf\]'"):
        load_hugging_face(str(bert), with_weights=True)
