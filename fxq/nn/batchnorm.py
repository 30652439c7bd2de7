"""Layers that keep the batch norm behind them to train it: folded into weight and bias before they are quantized.

With ``scale_c = gamma_c / sqrt(running_var_c + eps)`` (c: channels) and a quantizer Q:

- evaluation, and training with frozen statistics: ``y = conv(x, Q(W scale)) + (b - running_mean) scale + beta``, the
  layer that is deployed.
- training: ``y = BN(conv(x, Q(W scale) / scale) + b)`` with the statistics of the batch. One convolution yields them:
  it is linear, so undoing the fold on the small weight undoes it on the output. They are those of the quantized weight,
  so that its mean error ends in the running mean, and is corrected by the folded bias. No gradient passes through
  ``scale`` here, where it cancels but for the rounding; gamma learns as in float.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 3.2 (two convolutions); Krishnamoorthi 2018, arXiv:1806.08342,
section 3.2.3 (running statistics fold, then freeze); torch.ao.nn.intrinsic.qat, which undoes it on the output.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from fxq.nn.functional import layer_function, layer_padding
from fxq.nn.overlay import Overlay
from fxq.nn.recomputing import is_recomputing

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# A channel that its batch norm switches off (gamma 0) is divided by this: it stays as small as it is.
_SMALLEST_SCALE = 2.0**-16


class BatchNormFolded(Overlay):
    """Over a convolution or linear layer: does what a batch norm behind it did as well.

    Its weight and bias are those of the model. The batch norm stays at its own path, and so keeps its names.
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    _last_scale: Tensor
    _norms: tuple[Any]  # in a tuple, which does not register it once more

    @property
    def batch_norm(self) -> Any:
        """The batch norm that followed the layer; in eval mode its statistics are frozen."""
        return self._norms[0]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias with the batch norm folded in by its running statistics, as they are deployed."""
        norm, scale_c = self.batch_norm, self._scale_c()
        shift_c: Tensor = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        shift_c = shift_c.to(scale_c.dtype) * scale_c
        if norm.bias is not None:
            shift_c = shift_c + norm.bias
        dtype = self.weight.dtype
        return self.weight * self._like_weight(scale_c.to(dtype)), shift_c.to(dtype)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the batch norm of the layer, in training by the statistics of the batch; shapes as of the layer."""
        norm = self.batch_norm
        if not (self.training and norm.training):
            weight, bias = self.folded()
            return self._outputs(input, self._quantized_own(weight), bias, output_size)
        scale = self._training_scale()
        weight = self._quantized_own(self.weight * scale) / scale
        outputs: Tensor = norm(self._outputs(input, weight, self.bias, output_size))
        return outputs

    def quantized_weight(self) -> Tensor:
        """Return the weight that is deployed: folded, then quantized and dequantized."""
        return self._quantized_own(self.folded()[0])

    def store(self) -> None:
        """End training: the layer keeps the folded weight and bias as parameters of its own."""
        with torch.no_grad():
            folded = [value.clone() for value in self.folded()]
        del self._norms
        self.__dict__.pop("_last_scale", None)
        self.__class__ = self.own_type
        is_trained = self.weight.requires_grad
        self.weight, self.bias = (nn.Parameter(value, is_trained) for value in folded)

    def _scale_c(self) -> Tensor:
        norm = self.batch_norm
        var_c = norm.running_var.to(torch.promote_types(norm.running_var.dtype, torch.float32))
        scale_c = torch.rsqrt(var_c + norm.eps)
        return scale_c if norm.weight is None else scale_c * norm.weight

    def _training_scale(self) -> Tensor:
        """Return what the weight is multiplied with before it is quantized, and divided by afterwards."""
        if is_recomputing():  # the first run has moved the running statistics
            return self._last_scale
        with torch.no_grad():
            scale_c = self._scale_c()
        scale_c = scale_c.abs().clamp(min=_SMALLEST_SCALE).copysign(scale_c)
        scale = self._like_weight(scale_c.to(self.weight.dtype))
        if not torch.compiler.is_compiling():
            self._last_scale = scale
        return scale

    def _like_weight(self, value_c: Tensor) -> Tensor:
        """Return one value per output channel in a shape that broadcasts against the weight."""
        weight = self.weight
        ones = [1] * (weight.dim() - 2)
        if not isinstance(self, _TRANSPOSED):
            return value_c.reshape(-1, 1, *ones)
        # (in, out / groups, ...): the rows of a group lead to its own channels.
        per_group = value_c.reshape(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_group.reshape(weight.shape[0], -1, *ones)

    def _quantized_own(self, weight: Tensor) -> Tensor:
        quantizer = self._modules.get("_weight_quantizer")
        return weight if quantizer is None else quantizer(weight)

    def _outputs(self, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        """Return what the layer computes, with another weight and bias."""
        quantizer: Any = self._modules.get("_input_quantizer")
        inputs = input if quantizer is None else quantizer(input)
        function, options = layer_function(self, inputs, output_size)
        padding = layer_padding(self)
        if padding is not None:
            inputs = nn.functional.pad(inputs, **padding)
        return function(inputs, weight, bias, **options)


def fold_in_training(layer: nn.Module, norm: nn.Module) -> None:
    """Let ``layer``, whose outputs ``norm`` reads, do what both do, in place; ``norm`` is not to be called any more.

    Args:
        layer: a convolution, transposed convolution or linear layer of torch.nn, or its quantized version.
        norm: one of ``BATCH_NORMS`` with running statistics.
    """
    layer.__class__ = BatchNormFolded.over(type(layer))
    layer._norms = (norm,)  # type: ignore[assignment]


class FrozenBatchNorm(Overlay):
    """Over a batch norm: ``train()`` leaves it in evaluation, so that its statistics stay as they are."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation, whatever ``mode`` says."""
        return super().train(False)


def set_frozen(norm: nn.Module, frozen: bool, training: bool) -> None:
    """Freeze the statistics of a batch norm, in place, or let it follow the mode again, which is ``training`` now."""
    if isinstance(norm, FrozenBatchNorm) != frozen:
        norm.__class__ = norm.own_type if isinstance(norm, FrozenBatchNorm) else FrozenBatchNorm.over(type(norm))
    norm.train(training)
