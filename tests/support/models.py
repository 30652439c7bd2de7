"""Real models for the tests: torchvision's with sane statistics, and a ResNet trained on real digits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

_TEST_IMAGES, _BATCH, _EPOCHS = 400, 50, 3


@dataclass(frozen=True)
class Digits:
    """A trained network with what it takes to calibrate and to judge it. Shared by tests: do not modify."""

    model: nn.Module
    training_images: Tensor
    training_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        """Return the share of the test images that ``logits`` (images, 10) gets right."""
        return float((logits.argmax(1) == self.test_labels).float().mean())


def random_images(count: int, size: int = 224, seed: int = 0, channels: int = 3) -> Tensor:
    """Return ``count`` images of noise with some structure, shape (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, size // 16, size // 16, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(count, channels, size, size, generator=generator)


def torchvision_model(name: str, size: int = 224, seed: int = 0, **options: object) -> nn.Module:
    """Return a torchvision model with random weights, in eval mode, its batch norms fitted to ``random_images``."""
    torch.manual_seed(seed)
    return with_batch_statistics(torchvision.models.get_model(name, weights=None, **options), random_images(4, size))


def with_batch_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """Give the batch norms of ``model`` the statistics of ``images``, in place, and return it in eval mode.

    Fresh batch norms hold mean 0 and variance 1: activations of a deep random network then grow or die, and a
    quantized one shows nothing but that.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average of what it sees
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model.eval()
        for norm in norms:
            norm.train()
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def train_digits() -> Digits:
    """Return a ResNet with four basic blocks, trained on 1397 real digits (1, 8, 8); takes a few seconds."""
    images, labels = _digits()
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    with _one_thread():
        _train(model, images[_TEST_IMAGES:], labels[_TEST_IMAGES:])
    return Digits(
        model.eval(), images[_TEST_IMAGES:], labels[_TEST_IMAGES:], images[:_TEST_IMAGES], labels[:_TEST_IMAGES]
    )


def _train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    steps_per_epoch = len(images) // _BATCH
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=_EPOCHS * steps_per_epoch)
    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images)).split(_BATCH)[:steps_per_epoch]
        for batch in order:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def _digits() -> tuple[Tensor, Tensor]:
    """Return 1797 digits (1797, 1, 8, 8) of mean 0 and variance 1 and their labels, shuffled with a fixed seed."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return ((pixels - pixels.mean()) / pixels.std())[order], torch.tensor(found.target)[order]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads wait for each other at every small operation; on a busy machine that takes minutes instead of seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
