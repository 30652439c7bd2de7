"""The models of torchvision and timm, by name, with random weights and small random inputs."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

_BATCH = 2
# The first one that a model takes: what is quantized does not depend on it, but the time does.
_SIZES = (128, 224)
_FRAMES = 16


def families() -> dict[str, list[str]]:
    """Return the models that each row of the table may be of: one of torchvision, or those of a timm family."""
    found = {f"torchvision/{name}": [name] for name in torchvision.models.list_models()}
    for name in timm.list_models():
        found.setdefault(f"timm/{name.partition('_')[0]}", []).append(name)
    return found


def smallest(names: Sequence[str]) -> str:
    """Return the timm model with the fewest parameters, counted without making them."""
    return names[0] if len(names) == 1 else min(names, key=_parameters)


def build(library: str, name: str) -> nn.Module:
    """Return the model in eval mode, with seeded weights."""
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name).eval()  # type: ignore[no-any-return]
    options: dict[str, Any] = {"weights": None}
    if _group(name) in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if _group(name) == "detection" and "ssd" not in name:  # the others take images of any size, and make them large
        options |= {"min_size": 160, "max_size": 320}
    return torchvision.models.get_model(name, **options).eval()  # type: ignore[no-any-return]


def inputs_of(library: str, name: str, model: nn.Module) -> tuple[Any, ...]:
    """Return the smallest inputs on which the model runs.

    Raises:
        RuntimeError: it runs on none.
    """
    failures = []
    for inputs in _candidates(library, name, model):
        try:
            with torch.no_grad():
                model(*inputs)
        except Exception as error:  # the model's own code refuses the size in its own way
            failures.append(repr(error))
        else:
            return inputs
    raise RuntimeError(f"runs on no input: {failures[-1]}")


def fit_batch_norms(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Give the batch norms the statistics of ``inputs``, so that activations neither grow nor die with depth."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    with _averaging(norms), torch.no_grad(), contextlib.suppress(ValueError):  # a single value has no variance
        model(*inputs)


@contextlib.contextmanager
def _averaging(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _candidates(library: str, name: str, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    if library == "timm":
        cfg: dict[str, Any] = model.default_cfg
        channels, height, width = cfg["input_size"]
        if not cfg.get("fixed_input_size") and height > _SIZES[0]:
            for size in _SIZES:
                yield (_noise(channels, size, size),)
        yield (_noise(channels, height, width),)
        return
    for size in _SIZES:
        match _group(name):
            case "detection":
                yield ([image.sigmoid() for image in _noise(3, size, size)],)
            case "video":
                yield (_noise(3, _FRAMES, size, size),)
            case "optical_flow":
                yield _noise(3, size, size), _noise(3, size, size)
            case _:
                yield (_noise(3, size, size),)


def _noise(*shape: int) -> Tensor:
    """Return inputs (2, *shape) of coarse and fine noise, as images have."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(_BATCH, *shape[:-2], shape[-2] // 16, shape[-1] // 16, generator=generator)
    smooth = coarse.repeat_interleave(16, -1).repeat_interleave(16, -2)
    return nn.functional.pad(smooth, (0, shape[-1] % 16, 0, shape[-2] % 16)) + 0.3 * torch.randn(
        _BATCH, *shape, generator=generator
    )


def _group(name: str) -> str:
    """Return what a model of torchvision is for: "detection", "segmentation", "video", ..."""
    return next(
        (part for part in torchvision.models.get_model_builder(name).__module__.split(".")[2:-1]), "classification"
    )


def _parameters(name: str) -> int:
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except (RuntimeError, NotImplementedError):  # its constructor reads values
        model = timm.create_model(name)
    return sum(parameter.numel() for parameter in model.parameters())
