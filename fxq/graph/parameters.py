"""Changing weights and biases: checked, in place, with the ranges that depend on them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.errors import PassError
from fxq.graph.kinds import module_kind
from fxq.graph.stored import fit_quantizer, weight_quantizers
from fxq.nn import TensorQuantizer

_MAY_LACK_BIAS = frozenset({"conv", "conv_transpose", "linear"})


class Parameters:
    """The parameters of a graph module, the paths that lead to each, and the quantizers that read it.

    Made once for many changes; to be made again when modules were replaced.
    """

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._paths: dict[int, list[str]] = {}
        for path, parameter in gm.named_parameters(remove_duplicate=False):
            self._paths.setdefault(id(parameter), []).append(path)
        self._quantizers: dict[int, list[tuple[str, TensorQuantizer]]] = {}
        for path, tensor, quantizer in weight_quantizers(gm):
            self._quantizers.setdefault(id(tensor), []).append((path, quantizer))

    def set_weight(self, path: str, value: Tensor, keep_range: bool) -> list[str]:
        """Set a weight, in place, so that optimizers and tied modules keep it, and fit its range again.

        Args:
            path: of the weight, or of the module whose ``weight`` it is.
            value: same shape and dtype, finite; copied.
            keep_range: leave the range: the value was rounded to it.

        Returns:
            All paths of the weight; several where it is tied.

        Raises:
            PassError: there is no such weight, or the value does not fit it.
        """
        full_path, weight = self._find(path, "weight")
        if weight is None:
            raise PassError(f"{full_path!r} is None: there is no weight to set")
        paths = self._set(full_path, weight, value)
        for owner, quantizer in [] if keep_range else self._quantizers.get(id(weight), []):
            fit_quantizer(owner, weight, quantizer)
        return paths

    def set_bias(self, path: str, value: Tensor) -> list[str]:
        """Set a bias, in place, and create it where a convolution or linear layer has none.

        Args:
            path: of the bias, or of the module whose ``bias`` it is.
            value: shape (output channels,), the dtype of the weight, finite; copied.

        Returns:
            All paths of the bias.

        Raises:
            PassError: there can be no such bias, or the value does not fit it.
        """
        full_path, bias = self._find(path, "bias")
        if bias is not None:
            return self._set(full_path, bias, value)
        module: Any = self._gm.get_submodule(full_path.rpartition(".")[0])
        if module_kind(module) not in _MAY_LACK_BIAS:
            raise PassError(f"{full_path!r} is None, and only a convolution or linear layer can be given a bias")
        channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        _check(full_path, value, torch.Size([channels]), module.weight.dtype)
        created = value.detach().to(module.weight.device, copy=True)
        module.bias = nn.Parameter(created, requires_grad=module.weight.requires_grad)
        self._paths[id(module.bias)] = [full_path]
        return [full_path]

    def _set(self, path: str, parameter: nn.Parameter, value: Tensor) -> list[str]:
        _check(path, value, parameter.shape, parameter.dtype)
        with torch.no_grad():
            parameter.copy_(value)
        return self._paths.get(id(parameter), [path])

    def _find(self, path: str, name: str) -> tuple[str, nn.Parameter | None]:
        """Return the full path of a parameter, and the parameter or the None in its place."""
        for owner_path, parameter_name in ((path, name), path.rpartition(".")[::2]):
            try:
                owner = self._gm.get_submodule(owner_path)
            except AttributeError:
                continue
            if isinstance(owner, TensorQuantizer):
                raise PassError(f"{path!r} is a quantizer or its range: assign its amax or range")
            if parameter_name in owner._parameters:
                return f"{owner_path}.{parameter_name}".lstrip("."), owner._parameters[parameter_name]
        raise PassError(f"there is no parameter {path!r}, and no module {path!r} with a parameter {name!r}")


def _check(path: str, value: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise PassError(f"{path!r} takes a tensor, got {type(value).__name__}")
    if value.shape != shape:
        raise PassError(f"{path!r} has shape {tuple(shape)}, the new value {tuple(value.shape)}")
    if value.dtype != dtype:
        raise PassError(f"{path!r} is {dtype}, the new value {value.dtype}: convert it with .to({dtype})")
    if not bool(torch.isfinite(value).all()):
        raise PassError(f"the new value of {path!r} holds NaN or infinity")
