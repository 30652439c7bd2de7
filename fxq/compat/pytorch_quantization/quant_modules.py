"""Replace modules of torch.nn by quantized ones while a model is built: ``initialize()``, ``deactivate()``.

The original classes are found whatever the order of the calls, so that one ``deactivate()`` always restores
``torch.nn``. ``with initialize(): model = resnet50()`` restores it also when building the model fails.
"""

import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization.onnx_export import enable_onnx_export
from fxq.errors import CompatError
from fxq.nn import Quantized
from fxq.registry import registered_passes

__all__ = ["deactivate", "enable_onnx_export", "initialize"]

_logger = logging.getLogger(__name__)


class _QuantEntry(NamedTuple):
    """``orig_mod.mod_name`` is, or was, ``replace_mod``."""

    orig_mod: Any
    mod_name: str
    replace_mod: Any


_DEFAULT_QUANT_MAP = [
    _QuantEntry(torch.nn, "Conv1d", quant_nn.QuantConv1d),
    _QuantEntry(torch.nn, "Conv2d", quant_nn.QuantConv2d),
    _QuantEntry(torch.nn, "Conv3d", quant_nn.QuantConv3d),
    _QuantEntry(torch.nn, "ConvTranspose1d", quant_nn.QuantConvTranspose1d),
    _QuantEntry(torch.nn, "ConvTranspose2d", quant_nn.QuantConvTranspose2d),
    _QuantEntry(torch.nn, "ConvTranspose3d", quant_nn.QuantConvTranspose3d),
    _QuantEntry(torch.nn, "Linear", quant_nn.QuantLinear),
    _QuantEntry(torch.nn, "LSTM", quant_nn.QuantLSTM),
    _QuantEntry(torch.nn, "LSTMCell", quant_nn.QuantLSTMCell),
    _QuantEntry(torch.nn, "AvgPool1d", quant_nn.QuantAvgPool1d),
    _QuantEntry(torch.nn, "AvgPool2d", quant_nn.QuantAvgPool2d),
    _QuantEntry(torch.nn, "AvgPool3d", quant_nn.QuantAvgPool3d),
    _QuantEntry(torch.nn, "AdaptiveAvgPool1d", quant_nn.QuantAdaptiveAvgPool1d),
    _QuantEntry(torch.nn, "AdaptiveAvgPool2d", quant_nn.QuantAdaptiveAvgPool2d),
    _QuantEntry(torch.nn, "AdaptiveAvgPool3d", quant_nn.QuantAdaptiveAvgPool3d),
]


class QuantModuleReplacementHelper:
    """What is replaced by what, and what was there before.

    Attributes:
        orginal_func_map: what was there before (the original's spelling).
        default_quant_map: what is replaced unless it is left out.
        quant_map: what is replaced.
    """

    def __init__(self) -> None:
        self.orginal_func_map: set[_QuantEntry] = set()
        self.default_quant_map = _DEFAULT_QUANT_MAP
        self.quant_map: set[_QuantEntry] = set()

    def prepare_state(
        self,
        float_module_list: Iterable[str] | None = None,
        custom_map: Iterable[tuple[Any, str, Any]] | None = None,
    ) -> None:
        """Decide what is replaced; nothing is yet.

        Args:
            float_module_list: names of torch.nn to leave alone.
            custom_map: further replacements, (module, name in it, class); they win over the defaults.

        Raises:
            CompatError: a module has no such name.
        """
        left_out = set(float_module_list or ())
        unknown = left_out - {entry.mod_name for entry in self.default_quant_map}
        if unknown:
            _logger.warning("float_module_list names %s, which would not be replaced anyway", sorted(unknown))
        entries = {
            (entry.orig_mod, entry.mod_name): entry
            for entry in self.default_quant_map
            if entry.mod_name not in left_out
        }
        for orig_mod, mod_name, replace_mod in custom_map or ():
            if not hasattr(orig_mod, mod_name):
                raise CompatError(f"{getattr(orig_mod, '__name__', orig_mod)} has no {mod_name!r} to replace")
            entries[orig_mod, mod_name] = _QuantEntry(orig_mod, mod_name, replace_mod)
        self.quant_map = set(entries.values())

    def apply_quant_modules(self) -> None:
        """Replace; what an earlier call of this helper replaced is restored first."""
        self.restore_float_modules()
        registered_passes()  # they name classes of torch.nn, and must be imported while those are true
        self.orginal_func_map = {
            _QuantEntry(entry.orig_mod, entry.mod_name, _original(getattr(entry.orig_mod, entry.mod_name)))
            for entry in self.quant_map
        }
        for entry in self.quant_map:
            setattr(entry.orig_mod, entry.mod_name, entry.replace_mod)

    def restore_float_modules(self) -> None:
        """Put back what was there before; a second call does nothing."""
        for entry in self.orginal_func_map:
            setattr(entry.orig_mod, entry.mod_name, entry.replace_mod)
        self.orginal_func_map = set()


class Replacement:
    """What :func:`initialize` returns: a context manager whose end is :func:`deactivate`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deactivate()


def initialize(
    float_module_list: Iterable[str] | None = None,
    custom_quant_modules: Iterable[tuple[Any, str, Any]] | None = None,
) -> Replacement:
    """Replace the modules of torch.nn by quantized ones, for models built from now on until :func:`deactivate`.

    A second call decides anew what is replaced.

    Args:
        float_module_list: names to leave alone, such as ``["Linear"]``.
        custom_quant_modules: further replacements, such as ``[(torch.nn, "Linear", MyQuantLinear)]``.

    Raises:
        CompatError: a custom entry names nothing; then nothing changed.
    """
    _helper.prepare_state(float_module_list, custom_quant_modules)
    _helper.apply_quant_modules()
    return Replacement()


def deactivate() -> None:
    """Undo :func:`initialize`; models that were built stay as they are."""
    _helper.restore_float_modules()


def _original(current: Any) -> Any:
    """Return the class that ``current`` stands for, if another helper has replaced it already."""
    is_ours = any(current is entry.replace_mod for entry in _DEFAULT_QUANT_MAP)
    return current.replaced_type() if is_ours and issubclass(current, Quantized) else current


_helper = QuantModuleReplacementHelper()
