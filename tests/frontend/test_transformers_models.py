"""Hugging Face transformers as they are: quantized, written, compared, and their outputs under their own names."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers as hf
from torch import nn

import fxq

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what it takes, and how many layers it has: all of them are to compute with integers.

    So are its products of two activations, but those of the nodes ``in_float``. ``outputs`` are those of the file.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]
    layers: int
    outputs: tuple[str, ...]
    in_float: tuple[str, ...] = ()


def text() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    return {"input_ids": torch.randint(5, 90, (2, 12)), "attention_mask": mask}


def ids() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 90, (2, 12))}


def image(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def whisper_encoder() -> nn.Module:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 1}
    config = hf.WhisperConfig(
        **heads, **sizes, **WORDS, num_mel_bins=16, max_source_positions=20, decoder_start_token_id=1
    )
    encoder: nn.Module = hf.WhisperModel(config).encoder
    return encoder


def detr() -> nn.Module:
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 1}
    return hf.DetrForObjectDetection(
        hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, num_queries=5, **heads, **sizes)
    )


def clip() -> nn.Module:
    config = hf.CLIPConfig(text_config={**SMALL, **WORDS}, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    return hf.CLIPModel(config)


HIDDEN = ("last_hidden_state",)
POOLED = (*HIDDEN, "pooler_output")
CLIP = (
    *("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"),
    *(f"{part}_model_output_{name}" for part in ("text", "vision") for name in POOLED),
)
VIT = {"image_size": 32, "patch_size": 8, **SMALL}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
SEGFORMER = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
YOLOS = {**VIT, "image_size": [32, 32], "num_detection_tokens": 5}
WAV = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
QUICK = {
    "ViT": Case(lambda: hf.ViTModel(hf.ViTConfig(**VIT)), image, 14, POOLED),
    "Whisper's encoder": Case(whisper_encoder, lambda: {"input_features": torch.randn(2, 16, 40)}, 14, HIDDEN),
}
SLOW = {
    "BERT": Case(lambda: hf.BertModel(hf.BertConfig(**SMALL, **WORDS)), text, 13, POOLED),
    "DistilBERT": Case(
        lambda: hf.DistilBertModel(hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=100)),
        text,
        12,
        HIDDEN,
    ),
    "RoBERTa": Case(lambda: hf.RobertaModel(hf.RobertaConfig(**SMALL, **WORDS)), text, 13, POOLED),
    "GPT-2": Case(
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, use_cache=False, **WORDS)),
        ids,
        9,
        ("logits",),
    ),
    "Llama": Case(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **WORDS, num_key_value_heads=2, use_cache=False)),
        ids,
        15,
        ("logits",),
    ),
    "Swin": Case(lambda: hf.SwinModel(hf.SwinConfig(**SWIN)), image, 14, POOLED),
    "SegFormer": Case(
        lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**SEGFORMER)), lambda: image(64), 41, ("logits",)
    ),
    "YOLOS": Case(
        lambda: hf.YolosForObjectDetection(hf.YolosConfig(**YOLOS)), image, 19, ("logits", "pred_boxes", *HIDDEN)
    ),
    "DETR": Case(detr, lambda: image(64), 33, ("logits", "pred_boxes", *HIDDEN, "encoder_last_hidden_state")),
    "ConvNeXt": Case(
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])),
        lambda: image(64),
        16,
        POOLED,
    ),
    "CLIP": Case(clip, lambda: {**text(), **image()}, 27, CLIP),
    "Wav2Vec2": Case(
        lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL, **WAV, **POSITIONS)),
        lambda: {"input_values": torch.randn(2, 800)},
        16,
        (*HIDDEN, "extract_features"),
    ),
    "T5's encoder": Case(
        lambda: hf.T5EncoderModel(hf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=100)),
        text,
        12,
        HIDDEN,
    ),
}


@pytest.mark.parametrize("recipe", ["tensorrt", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
# The first decoder layer of DETR attends to zeros.
@pytest.mark.filterwarnings(
    "ignore:3 quantizers got a single value from all of the data. model.decoder.layers.0.self_attn"
)
def test_a_model_of_transformers_is_quantized_whole(name: str, recipe: str, tmp_path: Path) -> None:
    case = {**QUICK, **SLOW}[name]
    torch.manual_seed(0)
    model, batches = case.make().eval(), [case.inputs(), case.inputs()]
    prepared = fxq.prepare(model, batches[0], recipe=recipe)
    fxq.calibrate(prepared, batches, progress=False)
    converted = fxq.convert(prepared)
    found = converted(**batches[0])
    expected = model(**batches[0])
    assert (type(found), tuple(found)) == (type(expected), tuple(expected))
    explanation = fxq.explain(converted)
    assert (explanation.coverage.in_float, len(explanation.coverage.quantized)) == ((), case.layers)
    products = [node for node in explanation.nodes if node.kind == "matmul" and node.node not in case.in_float]
    assert [node.node for node in products if not node.is_quantized] == []
    report = fxq.export_onnx(converted, tmp_path / "model.onnx")
    assert tuple(one.name for one in onnx.load(report.path).graph.output) == case.outputs
    assert report.quality is not None
    assert report.quality.sqnr_db > 20


def test_batches_of_a_loader_go_in_with_their_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, **WORDS, num_labels=3)).eval()
    batches: list[dict[str, Any]] = [{**text(), "labels": torch.tensor([0, 2]), "idx": torch.arange(2)} for _ in "ab"]
    converted = fxq.quantize(model, batches, progress=False)
    assert tuple(converted(**{key: batches[0][key] for key in ("input_ids", "attention_mask")}).keys()) == ("logits",)
    explanation = fxq.explain(converted)
    assert (explanation.coverage.in_float, len(explanation.coverage.quantized)) == ((), 14)
    report = fxq.export_onnx(converted, tmp_path / "bert.onnx")
    assert [one.name for one in onnx.load(report.path).graph.input] == ["input_ids", "attention_mask"]
