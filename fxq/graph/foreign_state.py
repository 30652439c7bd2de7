"""A state dict of a model that was prepared otherwise: torch names the keys, and a warning says what they mean."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer

_BOUNDS = ("_amax", "_low", "_high")


def warn_of_foreign_states(model: nn.Module) -> None:
    """Let ``model``, prepared, warn of a state dict that lacks its ranges, or has others.

    The error, and with ``strict=False`` what could not be loaded, stay torch's: hooks are not told which it will be.
    """
    model.register_load_state_dict_pre_hook(_warn)  # type: ignore[no-untyped-call]


def _warn(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    own = {prefix + key for key in model.state_dict()}
    given = {key for key in state_dict if key.startswith(prefix)}
    text = _explained(model, prefix, own, given) if own & given else ""
    if text:
        warnings.warn(text, stacklevel=6)


def _explained(model: nn.Module, prefix: str, own: set[str], given: set[str]) -> str:
    quantizers = {path: found for path, found in named_modules(model) if isinstance(found, TensorQuantizer)}
    # One without a range takes that which is given.
    taken = {f"{prefix}{path}.{name}" for path, found in quantizers.items() for name in _bounds(found)}
    absent = own - given
    missing, unexpected = _ranges(absent), _ranges(given - own - taken)
    is_part = len(missing) < len(absent)  # a state dict of some layers lacks weights as well
    if not unexpected and (is_part or not missing):
        return ""
    if not quantizers:
        return (
            "the state dict is of a prepared model, and this one is converted: load it into the prepared model "
            "(fxq.prepare with the same recipe), and convert that"
        )
    if not _ranges(given):
        return (
            "the state dict has no ranges of quantizers: it is that of a float model, or of a prepared one that was "
            "not calibrated. Load that of a float model into it, and prepare it"
        )
    return (
        f"the state dict is of a model that was prepared otherwise, with another recipe, target, rules or qat: "
        f"{len(missing)} ranges of this model are not in it, and {len(unexpected)} of its are not in this model, such "
        f"as {(missing or unexpected)[0]!r}. Prepare with the recipe of that model; fxq.save and fxq.load keep both"
    )


def _bounds(quantizer: TensorQuantizer) -> tuple[str, ...]:
    if quantizer.is_dynamic:
        return ()
    return _BOUNDS[:1] if quantizer.descriptor.symmetric else _BOUNDS[1:]


def _ranges(keys: set[str]) -> list[str]:
    return sorted(key for key in keys if key.rpartition(".")[2] in _BOUNDS)
