"""The networks and images of the benchmarks: random weights, seeded, batch norms fitted to the images."""

import difflib
from collections.abc import Sequence

import timm
import torch
import torchvision
from torch import Tensor, nn


def noise_images(count: int, size: int = 224, seed: int = 0) -> Tensor:
    """Return images (count, 3, size, size) of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 16, size // 16, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def check_names(names: Sequence[str]) -> None:
    """Raise a SystemExit that names the first network that is neither torchvision's nor timm's, and what is close."""
    known = {*torchvision.models.list_models(), *timm.list_models()}
    for name in names:
        if name.partition(".")[0] not in known:
            close = ", ".join(difflib.get_close_matches(name, known)) or "nothing"
            raise SystemExit(f"neither torchvision nor timm has a model {name!r}; close to it: {close}")


def network(name: str) -> nn.Module:
    """Return a network of torchvision, else of timm, in eval mode; activations neither grow nor die with depth."""
    torch.manual_seed(0)
    is_torchvision = name in torchvision.models.list_models()
    model: nn.Module = torchvision.models.get_model(name, weights=None) if is_torchvision else timm.create_model(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average of what it sees
    with torch.no_grad():
        model.train()(noise_images(4))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
