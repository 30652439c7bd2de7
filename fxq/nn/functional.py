"""Convolutions and linear layers as functions of torch.nn.functional."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_function(
    layer: Any, inputs: Tensor | None = None, output_size: list[int] | None = None
) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return (function, options): ``function(x, weight, bias, **options)`` is the layer on padded ``x``.

    Args:
        layer: a convolution, transposed convolution or linear layer of torch.nn.
        inputs, output_size: of a transposed convolution that is called with the latter.
    """
    if isinstance(layer, nn.Linear):
        return functional.linear, {}
    if isinstance(layer, _TRANSPOSED_TYPES):
        spatial = len(layer.kernel_size)
        options = {name: getattr(layer, name) for name in ("stride", "padding", "output_padding", "groups", "dilation")}
        if output_size is not None:
            sizes: Any = (layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation)
            assert inputs is not None
            options["output_padding"] = layer._output_padding(inputs, output_size, *sizes)
        return _TRANSPOSED[spatial], options
    options = {name: getattr(layer, name) for name in ("stride", "dilation", "groups")}
    options["padding"] = layer.padding if layer.padding_mode == "zeros" else 0
    return _CONVOLUTIONS[len(layer.kernel_size)], options


def layer_padding(layer: Any) -> dict[str, Any] | None:
    """Return the options of torch.nn.functional.pad before the function, None where nothing is padded there."""
    if isinstance(layer, (nn.Linear, *_TRANSPOSED_TYPES)) or layer.padding_mode == "zeros":
        return None  # the function pads with zeros itself
    return {"pad": tuple(layer._reversed_padding_repeated_twice), "mode": layer.padding_mode}
