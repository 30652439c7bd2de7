"""Batch norm at inference is ``y = scale_c * x + shift_c``; here it moves into the weights beside it.

``scale_c = gamma_c / sqrt(var_c + eps)``, ``shift_c = beta_c - mean_c * scale_c``; c: channels. Computed in float64,
rounded once. Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

import torch
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def fold_after(layer: Weighted, bn: BatchNorm) -> None:
    """Give ``layer`` new parameters that compute ``bn(layer(x))``; what it shared with other layers stays as it is."""
    scale_and_shift(layer, *affine_of(bn))


def scale_and_shift(layer: Weighted, scale_c: Tensor, shift_c: Tensor) -> None:
    """Give ``layer`` new parameters that compute ``scale_c * layer(x) + shift_c``; both (channels,), float64."""
    weight = layer.weight.detach().double()
    bias = torch.zeros_like(shift_c) if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, _Transposed):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])  # (groups, in / groups, out / groups, ...)
        scale = scale_c.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * scale).flatten(0, 1)
    else:
        weight = weight * scale_c.reshape(-1, *[1] * (weight.dim() - 1))
    _set(layer, weight, bias * scale_c + shift_c)


def fold_before(bn: BatchNorm, layer: Weighted) -> None:
    """Give ``layer`` (no transposed convolution) new parameters that compute ``layer(bn(x))`` without zero padding."""
    scale_c, shift_c = affine_of(bn)
    weight = layer.weight.detach().double()
    groups = getattr(layer, "groups", 1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, out / groups, in / groups, ...)
    shape = (groups, 1, -1, *[1] * (weight.dim() - 2))
    shift = (grouped * shift_c.reshape(shape)).flatten(2).sum(2).flatten()  # out
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
    _set(layer, (grouped * scale_c.reshape(shape)).flatten(0, 1), bias + shift)


def affine_of(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm with running statistics, shape (channels,), float64."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale_c = torch.rsqrt(bn.running_var.double() + bn.eps)
    if bn.weight is not None:
        scale_c = scale_c * bn.weight.detach().double()
    shift_c = -bn.running_mean.double() * scale_c
    return scale_c, shift_c if bn.bias is None else shift_c + bn.bias.detach().double()


def _set(layer: Weighted, weight: Tensor, bias: Tensor) -> None:
    old = layer.weight
    layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
