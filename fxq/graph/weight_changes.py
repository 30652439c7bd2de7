"""WeightChanges: what calibration did to the weights, so that the next calibration can start anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxq.nn import TensorQuantizer


@dataclass(frozen=True)
class WeightChanges:
    """Parameters before and after calibration, by path.

    Args:
        before: None where there was none.
        after: the same paths.
    """

    before: Mapping[str, Tensor | None] = field(default_factory=dict)
    after: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def since(cls, weights: Mapping[str, Tensor], model: nn.Module) -> "WeightChanges":
        """Return what differs between ``weights``, by path, and those that ``model`` has now."""
        before: dict[str, Tensor | None] = {}
        after: dict[str, Tensor] = {}
        for path, parameter in _weights_of(model).items():
            was = weights.get(path)
            if was is None or not _are_equal(was, parameter):
                before[path], after[path] = was, parameter.detach().clone()
        return cls(before, after)

    def undo(self, model: nn.Module) -> None:
        """Give the parameters the values that they had before.

        Where one is no longer what calibration left, the model was trained or loaded since: then all stay as they are,
        and what they are is what the next calibration starts from.
        """
        found = _weights_of(model)
        if not all(path in found and _are_equal(value, found[path]) for path, value in self.after.items()):
            return
        for path, value in self.before.items():
            if value is None:
                owner, _, name = path.rpartition(".")
                setattr(model.get_submodule(owner), name, None)
            else:
                with torch.no_grad():
                    found[path].copy_(value)


def _weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by path, those of ranges excepted; tied ones under each of their paths."""
    return {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, TensorQuantizer)
        for name, parameter in module.named_parameters(recurse=False)
    }


def _are_equal(value: Tensor, parameter: Tensor) -> bool:
    is_like = value.shape == parameter.shape and value.dtype == parameter.dtype
    return is_like and torch.equal(value.to(parameter.device), parameter.detach())
