"""torch.onnx.export for scripts of its older days: what they pass is translated, for models with quantizers.

While ``TensorQuantizer.use_fb_fake_quant`` is True or ``enable_onnx_export()`` is entered, torch.onnx.export is
wrapped. A model without quantizers goes through untouched. For one with quantizers the wrapper

- drops the keywords that torch removed, such as ``enable_onnx_checker``, with a warning;
- raises opsets that torch's exporter does not write, with a warning;
- exports in eval mode, as the old exporter did, and into a file object too;
- refuses quantizers without a range by their names or, under ``use_fb_fake_quant``, which never asked for
  calibration, takes for each the range of the example inputs, with a warning.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxq.errors import CompatError, ExportError
from fxq.nn import tensor_quantizer
from fxq.nn.ranges import measure_amax
from fxq.quant.descriptor import QuantDescriptor

_FB_FAKE_QUANT = "use_fb_fake_quant"
_REMOVED = frozenset({
    "enable_onnx_checker", "use_external_data_format", "example_outputs", "strip_doc_string", "_retain_param_name",
    "propagate", "aten", "fallback",
})  # fmt: skip
_MOST_SHOWN = 5
# What torch's exporter writes itself; for less it converts afterwards, which QuantizeLinear does not survive.
_LOWEST_OPSET = 18


class ExportSwitch(type):
    """The metaclass of TensorQuantizer: its class attribute ``use_fb_fake_quant`` turns the wrapper on and off."""

    @property
    def use_fb_fake_quant(cls) -> bool:
        """Does torch.onnx.export take models of fxq.compat, calibrated or not?"""
        return _FB_FAKE_QUANT in _patch.holders

    @use_fb_fake_quant.setter
    def use_fb_fake_quant(cls, is_on: bool) -> None:
        if is_on and _FB_FAKE_QUANT not in _patch.holders:
            _patch.hold(_FB_FAKE_QUANT)
        elif not is_on and _FB_FAKE_QUANT in _patch.holders:
            _patch.release(_FB_FAKE_QUANT)


@contextmanager
def held_export(holder: str) -> Iterator[None]:
    """Wrap torch.onnx.export inside of the with statement."""
    _patch.hold(holder)
    try:
        yield
    finally:
        _patch.release(holder)


class _Patch:
    """torch.onnx.export, wrapped as long as somebody holds it."""

    def __init__(self) -> None:
        self.holders: list[str] = []
        self._torch_export: Callable[..., Any] = torch.onnx.export

    def hold(self, holder: str) -> None:
        if not self.holders:
            self._torch_export = torch.onnx.export

            @functools.wraps(self._torch_export)
            def export(model: Any, args: Any = (), f: Any = None, **options: Any) -> Any:
                return self._export(model, args, f, options)

            torch.onnx.export = export
        self.holders.append(holder)

    def release(self, holder: str) -> None:
        self.holders.remove(holder)
        if not self.holders:
            torch.onnx.export = self._torch_export

    def _export(self, model: Any, args: Any, f: Any, options: dict[str, Any]) -> Any:
        quantizers = _quantizers(model)
        if not quantizers:
            return self._torch_export(model, args, f, **options)
        options = _translated(options, quantizers)
        args = args if isinstance(args, tuple) else (args,)
        with ExitStack() as undo:
            undo.enter_context(_in_eval_mode(model))
            missing = {path: one for path, one in quantizers.items() if not (one.has_range or one.is_dynamic)}
            if missing and _FB_FAKE_QUANT in self.holders:
                warnings.warn(
                    f"{len(missing)} quantizers have not been calibrated ({_some(missing)}): the file holds the "
                    "ranges of the example inputs. Calibrate and load amax before you export a model to use",
                    stacklevel=3,
                )
                undo.enter_context(_ranges_of_example(model, args, options.get("kwargs") or {}, missing))
            elif missing:
                raise ExportError(
                    f"{len(missing)} quantizers have not been calibrated ({_some(missing)}). Calibrate and load amax "
                    "before exporting to ONNX, or disable() them"
                )
            if f is None or not hasattr(f, "write"):
                return self._torch_export(model, args, f, **options)
            program = self._torch_export(model, args, None, **options)
            f.write(program.model_proto.SerializeToString())
            return program


_patch = _Patch()


def _quantizers(model: Any) -> dict[str, tensor_quantizer.TensorQuantizer]:
    """Return the quantizers that are to be exported, by path."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return {}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, tensor_quantizer.TensorQuantizer) and module.is_enabled and module.is_quant_enabled
    }


def _translated(options: dict[str, Any], quantizers: dict[str, tensor_quantizer.TensorQuantizer]) -> dict[str, Any]:
    """Return the keyword arguments as torch takes them today."""
    if options.get("dynamo") is False:
        raise CompatError(
            "torch's old exporter (dynamo=False) has no form for quantizers: leave dynamo out, or use "
            "fxq.prepare, fxq.convert and fxq.export_onnx"
        )
    known = inspect.signature(_patch._torch_export).parameters
    removed = sorted(name for name in options if name in _REMOVED and name not in known)
    if removed:
        warnings.warn(f"torch.onnx.export no longer takes {', '.join(removed)}: dropped", stacklevel=4)
    kept = {name: value for name, value in options.items() if name not in removed}
    lowest = max(_opset_for(quantizer.descriptor) for quantizer in quantizers.values())
    asked = kept.get("opset_version")
    if asked is not None and asked < lowest:
        too_low = f"opset {asked} is too low for torch's exporter and these quantizers: opset {lowest} is written"
        warnings.warn(too_low, stacklevel=4)
    if asked is None or asked < lowest:
        kept["opset_version"] = lowest
    return kept


def _opset_for(descriptor: QuantDescriptor) -> int:
    if descriptor.is_float8:
        return 19
    is_wide = not isinstance(descriptor.num_bits, tuple) and descriptor.num_bits > 8
    return 21 if is_wide or descriptor.block_size is not None else _LOWEST_OPSET


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _ranges_of_example(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    missing: dict[str, tensor_quantizer.TensorQuantizer],
) -> Iterator[None]:
    """Give the quantizers the ranges that they measure on the example inputs, and take them away afterwards."""
    hooks = [quantizer.register_forward_pre_hook(_measure) for quantizer in missing.values()]
    try:
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        yield
    finally:
        for quantizer in missing.values():
            quantizer.reset_amax()


def _measure(quantizer: nn.Module, inputs: tuple[Any, ...]) -> None:
    assert isinstance(quantizer, tensor_quantizer.TensorQuantizer)
    scale = getattr(quantizer, "_pre_quant_scale", None)
    tensor: Tensor = inputs[0] if scale is None else inputs[0] * scale.to(inputs[0].dtype)
    measured = measure_amax(tensor, quantizer.descriptor, quantizer.owner)
    # A quantizer that is called several times gets the range of all calls.
    quantizer.amax = measured if quantizer.amax is None else torch.maximum(quantizer.amax, measured)


def _some(paths: dict[str, Any]) -> str:
    shown = [repr(path) for path in list(paths)[:_MOST_SHOWN]]
    return ", ".join(shown) + (", ..." if len(paths) > _MOST_SHOWN else "")
