"""Load a file of weights into a model, strictly: what does not fit is listed, never skipped."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxq.cli.checkpoint import listing, read_weights
from fxq.errors import ModelError
from fxq.given_model import as_module

# The names under which training holds a model: DataParallel and AveragedModel "module", Lightning modules "model" or
# "net"; and torch.compile, around any part of it.
_HOLDERS, _COMPILED = ("module", "model", "net"), "_orig_mod"

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``path`` into ``model``, in place.

    Args:
        model: what the weights are for.
        path: as of ``read_weights``. Names may start with those of what held the model in training, such as "module.",
            "model." and "_orig_mod.", where they fit without; weights that lie outside are then left out, and logged.

    Raises:
        ModelError: the file cannot be read, or does not fit the model.
    """
    weights = read_weights(path)
    model = as_module(model)
    expected = model.state_dict()
    fits = [fit for prefix in _prefixes(weights) if (fit := _Fit.of(weights, expected, prefix)).taken]
    whole = [fit for fit in fits if fit.is_whole]
    if len(whole) > 1:
        names = " and ".join(f"{fit.prefix}*" if fit.prefix else "*" for fit in whole)
        raise ModelError(f"{path} holds several sets of weights that fit, {names}: save one of them alone")
    best = whole[0] if whole else max(fits, key=lambda fit: len(fit.taken) - len(fit.unexpected))
    _check_usable(best.taken, expected, path)
    problems = best.problems(expected)
    if problems:
        raise ModelError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}. Name the model that was trained; "
            "--num-classes sets the size of a torchvision or timm head"
        )
    if best.outside:
        logger.info(
            "%s: taken is what lies under %r; left out, as no part of %s: %s",
            path,
            best.prefix,
            type(model).__name__,
            listing(best.outside),
        )
    model.load_state_dict(best.taken, strict=False)


@dataclass(frozen=True)
class _Fit:
    """What becomes of weights if their names are read without a prefix.

    ``taken`` by the model's names; ``outside`` are names without the prefix.
    """

    prefix: str
    taken: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    outside: list[str]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], expected: Mapping[str, Any], prefix: str) -> "_Fit":
        taken = {
            _without_compile(key.removeprefix(prefix), expected): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        # One tensor under several names is written once.
        tied = {_storage(expected[key]) for key in taken if key in expected}
        missing = [
            key
            for key, value in expected.items()
            # Only training counts batches, and old checkpoints do not.
            if key not in taken and not key.endswith("num_batches_tracked") and _storage(value) not in tied
        ]
        return cls(
            prefix,
            taken,
            missing,
            unexpected=[key for key in taken if key not in expected],
            outside=[key for key in weights if not key.startswith(prefix)],
        )

    @property
    def is_whole(self) -> bool:
        return not self.missing and not self.unexpected

    def problems(self, expected: Mapping[str, Any]) -> list[str]:
        """Return what does not fit, in words."""
        shapes = [
            f"{key} {tuple(self.taken[key].shape)} for {tuple(value.shape)}"
            for key, value in expected.items()
            if isinstance(value, Tensor) and key in self.taken and self.taken[key].shape != value.shape
        ]
        return [
            f"{len(keys)} {what}: {listing(keys)}"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", shapes),
            )
            if keys
        ]


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """Return what may have to be taken off all names, the shortest first: none, and each run of holders in front."""
    found = {""}
    for name in names:
        parts = name.split(".")
        for count, part in enumerate(parts[:-1], 1):
            if part in _HOLDERS:
                found.add(".".join(parts[:count]) + ".")
            elif part != _COMPILED:
                break
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _without_compile(name: str, expected: Mapping[str, Any]) -> str:
    """Return the name of a weight without the compiled modules around it, unless the model has it so."""
    return name if name in expected else ".".join(part for part in name.split(".") if part != _COMPILED)


def _storage(value: Any) -> tuple[Any, ...] | int:
    """Return what tells one tensor from another."""
    if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta or value.layout is not torch.strided:
        return id(value)
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def _check_usable(given: Mapping[str, Tensor], expected: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that cannot be copied into the model's, or that would be taken for other numbers than they are."""
    lazy = [key for key, value in expected.items() if is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{len(lazy)} weights of the model have no shape yet ({listing(lazy)}): run it once on an input where it "
            "is made"
        )
    unusable = [
        f"{key} ({reason})"
        for key, value in given.items()
        if key in expected and (reason := _why_not(value, expected[key]))
    ]
    if unusable:
        raise ModelError(
            f"{path} holds what are no plain weights: {listing(unusable)}; convert them before torch.save, with "
            ".to_dense(), .dequantize() or .float()"
        )


def _why_not(given: Tensor, expected: Any) -> str:
    if given.is_meta:
        return "meta, without values"
    if given.is_quantized:
        return "quantized"
    if given.layout is not torch.strided or given.is_nested:
        return "nested" if given.is_nested else str(given.layout).removeprefix("torch.")
    if isinstance(expected, Tensor) and expected.is_floating_point() and not given.is_floating_point():
        return str(given.dtype).removeprefix("torch.")
    return ""
