"""``hf:``: Hugging Face transformers from a local directory. Nothing is downloaded, and no code of it is run."""

import difflib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxq.cli.checkpoint import listing
from fxq.cli.extras import import_extra
from fxq.errors import ModelError

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

logger = logging.getLogger(__name__)


def holds_weights(name: str) -> bool:
    """Return whether ``hf:name`` names trained weights, rather than a configuration alone.

    Raises:
        ModelError: it is no Hugging Face model, or holds its weights in a form that is not read.
    """
    config = _config_path(name)
    if Path(name) == config:
        return False
    folder = config.parent
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter of a model: merge both (merge_and_unload() of peft), and save the result"
        )
    if any((folder / file).is_file() for file in _WEIGHTS):
        return True
    others = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".safetensors", ".h5", ".gguf")]
    if others:
        raise ModelError(
            f"{folder} has its weights in {listing(others)}, and read is {_WEIGHTS[0]} or its index: load the model in "
            f"transformers and write it with model.save_pretrained(), or name hf:{folder / _CONFIG} and give --weights"
        )
    return False


def load_hugging_face(name: str, with_weights: bool) -> nn.Module:
    """Return the model that a configuration describes, in float32.

    Args:
        name: a directory, or the config.json in it.
        with_weights: take the directory's weights, where it has some; else they are random.

    Raises:
        ModelError: it is no Hugging Face model, of a class that transformers does not have, or its weights do not fit.
    """
    path = _config_path(name)
    transformers = import_extra("transformers", "hf", f"hf:{name}")
    with _local_and_quiet(transformers):
        config = _config(path, transformers)
        model_class = _model_class(config, path, transformers)
        _prepare(config, path)
        try:
            if not (with_weights and holds_weights(name)):
                model: nn.Module = model_class._from_config(config, dtype=torch.float32)
                return model
            model, info = model_class.from_pretrained(
                path.parent,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with the rest
                output_loading_info=True,
            )
        except Exception as error:  # a configuration may break its model's code in any way, a file its readers
            raise ModelError(f"{path.parent}: {model_class.__name__} cannot be made: {_reason(error)}") from error
    _check_loaded(model, info, path.parent)
    return model


def _config_path(name: str) -> Path:
    path = Path(name)
    if path.is_dir() and (path / _CONFIG).is_file():
        return path / _CONFIG
    if path.is_file():
        return path
    if path.is_dir():
        held = listing(sorted(file.name for file in path.iterdir())) or "nothing"
        raise ModelError(
            f"{path} is no Hugging Face model: it has no {_CONFIG} ({held}); model.save_pretrained() writes one"
        )
    raise ModelError(
        f"hf: names a directory with {_CONFIG} and model.safetensors, and {name!r} is none. Nothing is downloaded: get "
        "a model of the hub with `hf download ID --local-dir DIR`, and name hf:DIR"
    )


@contextmanager
def _local_and_quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from the network, and from printing what is told here."""
    constants: Any = import_extra("huggingface_hub.constants", "hf", "hf:")
    told = transformers.utils.logging
    offline, verbosity, has_bars = constants.HF_HUB_OFFLINE, told.get_verbosity(), told.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    told.set_verbosity(logging.CRITICAL)
    told.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        told.set_verbosity(verbosity)
        if has_bars:
            told.enable_progress_bar()


def _config(path: Path, transformers: Any) -> Any:
    """Return the configuration that a file holds."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no configuration of a model: {_reason(error)}") from error
    kind = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f'{path} is no configuration of a Hugging Face model: it names no "model_type"')
    known = list(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES)
    if kind not in known:
        raise ModelError(
            f"{path} is for a {kind!r} model, which transformers {transformers.__version__} does not have"
            f"{_did_you_mean(kind, known)}: code that comes with a model is not run. Load it in a function of your "
            "own, and name that as package.module:function"
        )
    if given.get("quantization_config"):
        raise ModelError(f"{path} says that the weights are quantized already: name the model that they were made of")
    try:
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its values may break the class in any way
        raise ModelError(f"{path} is no configuration of a {kind!r} model: {_reason(error)}") from error


def _model_class(config: Any, path: Path, transformers: Any) -> Any:
    """Return the class that a configuration names."""
    named = config.architectures or []
    base = transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES.get(config.model_type, "")
    if not named:
        example = f', such as ["{base}"]' if isinstance(base, str) and base else ""
        raise ModelError(f'{path} names no class of the model: add "architectures" to it{example}')
    if len(named) > 1:
        raise ModelError(f'{path} names {len(named)} classes ({listing(named)}): leave the one in "architectures"')
    found = getattr(transformers, named[0], None) if named[0].isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"{path} names the class {named[0]!r}, which is no model of transformers {transformers.__version__}"
            f"{_did_you_mean(named[0], dir(transformers))}"
        )
    return found


def _prepare(config: Any, path: Path) -> None:
    """Set in a configuration what a file of the model is made with; change it in place."""
    parts = [part for part in (config, *(getattr(config, name) for name in config.sub_configs)) if part is not None]
    for part in parts:
        # Others are kernels that compute the same, some of them code from elsewhere, and cannot be exported.
        if part._attn_implementation not in (None, "eager", "sdpa"):
            part._attn_implementation = None
    caching = [part for part in parts if getattr(part, "use_cache", False)]
    if any(getattr(part, "is_decoder", True) for part in caching):  # encoders say it, and have none
        logger.info("%s: without the cache of words that were seen (use_cache), which no file hands back", path)
    for part in caching:
        part.use_cache = False
    stored = str(config.dtype or "float32").removeprefix("torch.")
    if stored != "float32":
        logger.info("%s: the weights are %s, and taken as float32", path, stored)


def _check_loaded(model: nn.Module, info: dict[str, Any], folder: Path) -> None:
    """Raise a ModelError where the weights do not fit, and tell what of them is not used."""
    beyond = sorted(key for key in info["unexpected_keys"] if _is_beyond(key, model))
    unused = sorted(set(info["unexpected_keys"]) - set(beyond))
    shapes = sorted(f"{key} {tuple(given)} for {tuple(wanted)}" for key, given, wanted in info["mismatched_keys"])
    problems = [
        f"{len(keys)} {what}: {listing(keys)}"
        for what, keys in (
            ("missing", sorted(set(info["missing_keys"]))),
            ("of another shape", shapes),
            ("of layers that the configuration has not", beyond),
            ("not to be read", list(map(str, info["error_msgs"]))),
        )
        if keys
    ]
    if problems:
        raise ModelError(
            f"the weights in {folder} do not fit its {_CONFIG}, which is of a {type(model).__name__}: "
            f"{'; '.join(problems)}"
        )
    if unused:
        logger.warning(
            "%s: %d weights that a %s has no use for: %s", folder, len(unused), type(model).__name__, listing(unused)
        )


def _is_beyond(key: str, model: nn.Module) -> bool:
    """Return whether a weight is of a layer behind the last one of a list that the model has."""
    parts = key.split(".")
    modules = dict(model.named_modules())
    return any(
        part.isdecimal() and isinstance(modules.get(".".join(parts[:index])), nn.ModuleList | nn.Sequential)
        for index, part in enumerate(parts)
    )


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0].strip(": ")
