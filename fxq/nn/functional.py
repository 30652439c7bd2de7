"""Convolutions and linear layers as functions of torch.nn.functional."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_function(layer: Any) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return (function, options): ``function(x, weight, bias, **options)`` is the layer on padded ``x``.

    Args:
        layer: a convolution, transposed convolution (called without ``output_size``) or linear layer of torch.nn.
    """
    if isinstance(layer, nn.Linear):
        return functional.linear, {}
    if isinstance(layer, _TRANSPOSED_TYPES):
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        return _TRANSPOSED[len(layer.kernel_size)], {name: getattr(layer, name) for name in names}
    options = {name: getattr(layer, name) for name in ("stride", "dilation", "groups")}
    options["padding"] = layer.padding if layer.padding_mode == "zeros" else 0
    return _CONVOLUTIONS[len(layer.kernel_size)], options


def layer_padding(layer: Any) -> dict[str, Any] | None:
    """Return the options of torch.nn.functional.pad before the function, None where nothing is padded there."""
    if isinstance(layer, (nn.Linear, *_TRANSPOSED_TYPES)) or layer.padding_mode == "zeros":
        return None  # the function pads with zeros itself
    return {"pad": tuple(layer._reversed_padding_repeated_twice), "mode": layer.padding_mode}
