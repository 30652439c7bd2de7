"""Make the model that the command line names. Nothing is downloaded, and only what the user names is run."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from fxq.cli.extras import import_extra
from fxq.cli.hugging_face import holds_weights, load_hugging_face
from fxq.cli.weights import load_weights
from fxq.errors import ModelError

_FORMS = "write package.module:callable, torchvision:NAME, timm:NAME or hf:DIRECTORY"

_HELD = {
    ".onnx": "an ONNX file, which fxq verify and fxq bench take",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), "weights, which go with --weights"),
}


@dataclass(frozen=True)
class ModelSource:
    """What the command line says about the model.

    Args:
        spec: ``package.module:callable``, ``torchvision:NAME``, ``timm:NAME`` or ``hf:DIRECTORY``.
        weights: a .pt or .safetensors file, None for those the callable makes or the directory holds.
        num_classes: passed to torchvision or timm; None for their own.
        random_weights: the user wants them untrained.
    """

    spec: str
    weights: Path | None = None
    num_classes: int | None = None
    random_weights: bool = False

    @property
    def has_random_weights(self) -> bool:
        """Would the model be untrained? A callable may load weights of its own.

        Raises:
            ModelError: ``hf:`` names no Hugging Face model.
        """
        origin, _, name = self.spec.partition(":")
        if self.weights is not None:
            return False
        return not holds_weights(name) if origin == "hf" else self.is_image_model

    @property
    def is_image_model(self) -> bool:
        """Does the model come from a library of image models?"""
        return self.spec.partition(":")[0] in _IMAGE_LIBRARIES

    @property
    def is_callable(self) -> bool:
        """Is the model made by a function or class of the user's?"""
        return not self.is_image_model and self.spec.partition(":")[0] != "hf"


def check_trained(source: ModelSource) -> None:
    """Refuse to make a file of random weights, unless they were asked for.

    Raises:
        ModelError: neither weights nor random ones were asked for, or both.
    """
    if source.random_weights and not source.has_random_weights:
        own = "a callable makes its own" if source.is_callable else "the directory holds its own"
        given = "--weights gives it others" if source.weights else own
        raise ModelError(
            f"--random-weights is for torchvision:, timm: and a configuration as hf:, without --weights; {given}"
        )
    if source.has_random_weights and not source.random_weights:
        raise ModelError(
            f"{source.spec} has random weights, and a file made of them means nothing: load trained ones with "
            "--weights FILE, or say --random-weights to look at placement and speed alone"
        )


def load_model(source: ModelSource) -> nn.Module:
    """Return the model in eval mode, with its weights.

    Raises:
        ModelError: there is no such model, or the weights do not fit.
    """
    origin, _, name = source.spec.partition(":")
    if not (origin and name):
        held = _HELD.get(Path(source.spec).suffix)
        raise ModelError(f"{source.spec!r} names no model{f' but {held}' if held else ''}: {_FORMS}")
    if origin.endswith(".py"):
        module = ".".join(Path(origin).with_suffix("").parts)
        raise ModelError(f"{source.spec!r} names a file; did you mean {module}:{name}? {_FORMS}")
    keywords = {} if source.num_classes is None else {"num_classes": source.num_classes}
    if origin in _IMAGE_LIBRARIES:
        model = _IMAGE_LIBRARIES[origin](name, keywords)
    elif keywords:
        raise ModelError(f"--num-classes is for torchvision and timm; {source.spec!r} builds its own head")
    elif origin == "hf":
        model = load_hugging_face(name, with_weights=source.weights is None)
    else:
        model = _from_callable(origin, name)
    if source.weights is not None:
        load_weights(model, source.weights)
    _check_initialized(model)
    return model.eval()


def _check_initialized(model: nn.Module) -> None:
    """Refuse lazy layers without weights: the first input would give them random ones."""
    for path, parameter in model.named_parameters():
        if is_lazy(parameter):
            layer = path.rpartition(".")[0]
            raise ModelError(
                f"{layer!r} is a lazy layer ({type(model.get_submodule(layer)).__name__}) whose weights were never "
                "made: give --weights, or run the model once and load its weights before it is returned"
            )


def _from_torchvision(name: str, keywords: dict[str, Any]) -> nn.Module:
    models = import_extra("torchvision.models", "vision", f"torchvision:{name}")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}; {_did_you_mean(name, models.list_models())}")
    # Detection and segmentation models would download the weights of their backbone.
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        keywords = {**keywords, "weights_backbone": None}
    model: nn.Module = models.get_model(name, weights=None, **keywords)
    return model


def _from_timm(name: str, keywords: dict[str, Any]) -> nn.Module:
    timm = import_extra("timm", "timm", f"timm:{name}")
    # Asked first: create_model goes to the network for a name with a hub's prefix.
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}; {_did_you_mean(name, timm.list_models())}")
    model: nn.Module = timm.create_model(name, pretrained=False, **keywords)
    return model


_IMAGE_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}


def _from_callable(module_name: str, attribute: str) -> nn.Module:
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"{module_name!r} has no {attribute!r}; {_did_you_mean(part, dir(found))}")
        found = getattr(found, part)
    where = f"{module_name}:{attribute}"
    if not isinstance(found, nn.Module):
        found = _call(found, where)
    if not isinstance(found, nn.Module):
        raise ModelError(f"{where} returned {type(found).__name__}; it must return a torch.nn.Module")
    return found


def _import(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may fail in any way, sys.exit too
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"there is no module {error.name!r} in the current directory or among the installed packages; {_FORMS}"
            ) from error
        raise ModelError(f"importing {name!r} failed: {type(error).__name__}: {error}") from error


def _call(found: Any, where: str) -> Any:
    if not callable(found):
        raise ModelError(f"{where} is a {type(found).__name__}; name a module, a class or a function without arguments")
    try:
        return found()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's function may fail in any way, sys.exit too
        raise ModelError(
            f"calling {where} without arguments failed: {type(error).__name__}: {error}; "
            "wrap it in a function that takes none"
        ) from error


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else _FORMS
