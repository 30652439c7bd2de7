"""What the command line says about inputs: an example where there is no data, and what data must look like."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxq.batches import describe
from fxq.cli.images import ImageOptions
from fxq.cli.input_spec import InputSpec
from fxq.cli.models import ModelSource
from fxq.errors import ModelError

_SAMPLES = 2


@dataclass(frozen=True)
class ExampleSource:
    """What the command line says about inputs.

    Args:
        inputs: of the model; none for images, where the model comes from a library of image models.
        images: their size and channels.
    """

    inputs: tuple[InputSpec, ...]
    images: ImageOptions

    def make(self, source: ModelSource, model: nn.Module) -> tuple[Any, ...]:
        """Return random example inputs for ``model``, the same in every run; integers are 0 or 1, bytes anything.

        Raises:
            ModelError: nothing tells their shape, or the model has no such inputs.
        """
        inputs = self.inputs
        if not inputs and source.is_image_model:
            inputs = (InputSpec((_SAMPLES, len(self.images.mean), self.images.size, self.images.size)),)
        if not inputs:
            raise ModelError(
                f"the file is written, and checked, with an input for {type(model).__name__}: give --input-shape such "
                "as 1,3,224,224, or inputs of any kind with --calib-data"
            )
        return example_inputs(inputs, model)

    def check(self, batch: tuple[Any, ...], model: nn.Module, origin: str) -> None:
        """Raise a ModelError if a batch of calibration data looks otherwise; its number of samples is its own."""
        for position, spec in _positions(self.inputs, model).items():
            found = batch[position] if position < len(batch) else None
            is_alike = isinstance(found, Tensor) and found.shape[1:] == torch.Size(spec.shape[1:])
            if not is_alike or (spec.dtype and found.dtype is not getattr(torch, spec.dtype)):  # type: ignore[union-attr]
                got = "nothing" if found is None else f"{describe(found)} in a batch"
                raise ModelError(
                    f"--input-shape {spec} and --calib-data {origin} do not agree, which has {got} for it: correct one "
                    "of them, or leave --input-shape out"
                )

    def dtypes(self, model: nn.Module) -> dict[int, str]:
        """Return the dtypes that were asked for, by position of the input."""
        return {position: spec.dtype for position, spec in _positions(self.inputs, model).items() if spec.dtype}


def example_inputs(inputs: tuple[InputSpec, ...], model: nn.Module) -> tuple[Any, ...]:
    """Return random values for ``inputs``, in the order of the model's parameters; defaults stand between them.

    Raises:
        ModelError: the model has no such inputs, or needs others too.
    """
    generator, dtype = torch.Generator().manual_seed(0), float_dtype(model)
    positions = sorted(_positions(inputs, model).items())
    return with_defaults({position: _random(spec, dtype, generator) for position, spec in positions}, model)


def with_defaults(by_position: Mapping[int, Any], model: nn.Module) -> tuple[Any, ...]:
    """Return positional inputs of ``model``; its own defaults stand between those that are given.

    Raises:
        ModelError: it needs others too.
    """
    parameters = _parameters(model)
    needed = [
        one.name
        for position, one in enumerate(parameters)
        if one.default is inspect.Parameter.empty and position not in by_position
    ]
    if needed:
        raise ModelError(
            f"{type(model).__name__} needs its input {needed[0]!r} too: give one --input-shape, or one array of the "
            "data, for each"
        )
    last = max(by_position)
    return tuple(by_position[at] if at in by_position else parameters[at].default for at in range(last + 1))


def float_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating point dtype of the model's weights; float32 without any."""
    return next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)


def input_names(model: nn.Module) -> list[str]:
    """Return the names of the model's inputs."""
    return [one.name for one in _parameters(model)]


def has_default(model: nn.Module, name: str) -> bool:
    """Return whether the model runs without its input ``name``."""
    return any(one.name == name and one.default is not one.empty for one in _parameters(model))


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    parameters = inspect.signature(model.forward).parameters.values()
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):  # where it ends nobody knows
        return [one for one in named if one.kind is not one.KEYWORD_ONLY]
    return named


def _positions(inputs: tuple[InputSpec, ...], model: nn.Module) -> dict[int, InputSpec]:
    """Return the inputs by position; those without a name take the places that are left, in order."""
    names, takes = input_names(model), f"{type(model).__name__} takes {', '.join(input_names(model)) or 'none by name'}"
    has_more = any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(model.forward).parameters.values())
    found: dict[int, InputSpec] = {}
    for spec in inputs:
        if spec.name and spec.name not in names:
            raise ModelError(f"--input-shape {spec}: there is no input {spec.name!r}; {takes}")
        if spec.name and names.index(spec.name) in found:
            raise ModelError(f"--input-shape {spec}: the input {spec.name!r} is named twice")
        if spec.name:
            found[names.index(spec.name)] = spec
    for spec in inputs:
        if not spec.name:
            place = next(index for index in range(len(inputs) + len(names)) if index not in found)
            if place >= len(names) and not has_more:
                raise ModelError(f"--input-shape {spec}: there is no input left for it; {takes}")
            found[place] = spec
    return found


def _random(spec: InputSpec, default: torch.dtype, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, spec.dtype) if spec.dtype else default
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    # An index of any table and a mask alike; and pixels.
    return torch.randint(0, 256 if dtype is torch.uint8 else 2, spec.shape, generator=generator).to(dtype)
