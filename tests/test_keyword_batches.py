"""Batches as tokenizers and loaders make them: more keys than forward takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.layer(x if mask is None else x * mask)
        return {"scores": scores} if labels is None else {"loss": nn.functional.cross_entropy(scores, labels)}


@pytest.mark.parametrize(
    "more",
    [{"labels": LABELS}, {"label": LABELS}, {"index": LABELS, "text": ["a", "b"]}],
    ids=["labels", "label", "others"],
)
def test_what_forward_does_not_need_is_left_out(more: dict[str, Any]) -> None:
    converted = fxq.quantize(Classifier().eval(), [{"x": X, **more}] * 2, progress=False)
    assert [*converted(X)] == ["scores"]
    prepared = fxq.prepare(Classifier().eval(), {"x": X})
    fxq.calibrate(prepared, [{"x": X, **more}], progress=False)
    assert [*fxq.convert(prepared)(X)] == ["scores"]


def test_labels_that_the_model_was_prepared_with_stay() -> None:
    prepared = fxq.prepare(Classifier().eval(), {"x": X, "labels": LABELS}, qat=True)
    fxq.calibrate(prepared, [{"x": X, "labels": LABELS}], progress=False)
    assert [*prepared(X, labels=LABELS)] == ["loss"]


def test_a_key_that_looks_like_a_parameter_is_an_error() -> None:
    with pytest.raises(fxq.FxqError, match="takes no 'maske'; did you mean 'mask'"):
        fxq.quantize(Classifier().eval(), [{"x": X, "maske": X}], progress=False)
    with pytest.raises(fxq.FxqError, match="inputs are x, mask, labels, and the batch has 'image'"):
        fxq.quantize(Classifier().eval(), [{"image": X}], progress=False)
