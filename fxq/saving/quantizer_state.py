"""What quantizers hold beside their ranges: switches, how they observe, and what they have seen."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from fxq.calib import Calibrator
from fxq.errors import CalibrationError, SavedModelError
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor
from fxq.saving.packed import CALIBRATOR

_SWITCHES: Mapping[str, tuple[Callable[[TensorQuantizer], None], Callable[[TensorQuantizer], None]]] = {
    "quant": (TensorQuantizer.enable_quant, TensorQuantizer.disable_quant),
    "clip": (TensorQuantizer.enable_clip, TensorQuantizer.disable_clip),
    "calib": (TensorQuantizer.enable_calib, TensorQuantizer.disable_calib),
    "track": (TensorQuantizer.enable_tracking, TensorQuantizer.disable_tracking),
    "frozen": (TensorQuantizer.freeze, partial(TensorQuantizer.freeze, frozen=False)),
    "enabled": (TensorQuantizer.enable, TensorQuantizer.disable),
}


def quantizers_to_dict(model: nn.Module) -> tuple[dict[str, Any], dict[str, Calibrator]]:
    """Return switches, descriptor and kind of calibrator by path, and the calibrators themselves."""
    found: dict[str, Any] = {}
    calibrators: dict[str, Calibrator] = {}
    for path, quantizer in _quantizers(model).items():
        calibrator = quantizer.calibrator
        found[path] = {
            "descriptor": quantizer.descriptor.to_dict(),
            "switches": {
                "quant": quantizer.is_quant_enabled,
                "clip": quantizer.is_clip_enabled,
                "calib": quantizer.is_calib_enabled,
                "track": quantizer._if_track,  # frozen or not
                "frozen": quantizer.is_frozen,
                "enabled": quantizer.is_enabled,
            },
            "calibrator": None if calibrator is None else _full_name(calibrator),
        }
        if calibrator is not None:
            calibrators[path] = calibrator
    return found, calibrators


def states_of(calibrators: Mapping[str, Calibrator]) -> dict[str, Tensor]:
    """Return what they have observed as tensors, by the names that these are saved under."""
    return {
        f"{CALIBRATOR}{path}/{name}": value
        for path, calibrator in calibrators.items()
        for name, value in calibrator.state().items()
    }


def set_quantizers(model: nn.Module, saved: Mapping[str, Any], states: Mapping[str, Tensor]) -> None:
    """Give the quantizers of ``model`` what :func:`quantizers_to_dict` and :func:`states_of` returned.

    Raises:
        SavedModelError: there are other quantizers, or one is of another format or observes by a class of its own.
    """
    quantizers = _quantizers(model)
    if quantizers.keys() != saved.keys():
        unlike = sorted(quantizers.keys() ^ saved.keys())
        raise SavedModelError(f"the model and the file do not have the same quantizers: {', '.join(unlike[:5])}")
    seen: dict[str, dict[str, Tensor]] = {path: {} for path in saved}
    for name, value in states.items():
        path, _, entry = name.rpartition("/")
        seen[path][entry] = value
    for path, fields in saved.items():
        _set(path, quantizers[path], fields, seen[path])


def _set(path: str, quantizer: TensorQuantizer, fields: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    descriptor = QuantDescriptor.from_dict(fields["descriptor"])
    if quantizer.descriptor.replace(calibrator=descriptor.calibrator) != descriptor:
        raise SavedModelError(f"quantizer {path!r} is {quantizer.descriptor} here, and was saved as {descriptor}")
    if quantizer.descriptor.calibrator != descriptor.calibrator:
        quantizer.use_calibrator(descriptor.calibrator)
    for name, is_on in fields["switches"].items():
        on, off = _SWITCHES[name]
        (on if is_on else off)(quantizer)
    calibrator = quantizer.calibrator
    kind = None if calibrator is None else _full_name(calibrator)
    if kind != fields["calibrator"]:
        raise SavedModelError(f"quantizer {path!r} observes by {kind}, and was saved with {fields['calibrator']}")
    if calibrator is not None:
        try:
            quantizer._calibrator = type(calibrator).from_state(state)
        except CalibrationError as error:
            raise SavedModelError(f"quantizer {path!r}: {error}") from error


def _quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    return {path: found for path, found in named_modules(model) if isinstance(found, TensorQuantizer)}


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
