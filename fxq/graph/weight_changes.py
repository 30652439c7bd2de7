"""WeightChanges: what calibration did to weights and modules, so that the next calibration can start anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.graph.data_stage import DataStage
from fxq.graph.edges import take_out
from fxq.graph.modules import copy_graph
from fxq.nn import TensorQuantizer


@dataclass(frozen=True)
class WeightChanges:
    """Parameters before and after calibration, by path.

    Args:
        before: None where there was none.
        after: the same paths.
        replaced: the modules in whose place others were put, by path.
        inserted: names of nodes that were inserted; each calls a module on what it reads.
    """

    before: Mapping[str, Tensor | None] = field(default_factory=dict)
    after: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, nn.Module] = field(default_factory=dict)
    inserted: tuple[str, ...] = ()

    @property
    def are_none(self) -> bool:
        """Did calibration leave everything as it was?"""
        return not (self.after or self.replaced or self.inserted)

    @classmethod
    def since(cls, weights: Mapping[str, Tensor], model: nn.Module, stage: DataStage) -> "WeightChanges":
        """Return what differs between ``weights``, by path, and those that ``model`` has now, and what ``stage`` notes.

        Inserted modules have no parameters.
        """
        before: dict[str, Tensor | None] = {}
        after: dict[str, Tensor] = {}
        for path, parameter in _weights_of(model).items():
            was = weights.get(path)
            if was is None or not _are_equal(was, parameter):
                before[path], after[path] = was, parameter.detach().clone()
        return cls(before, after, dict(stage.replaced), tuple(stage.inserted))

    def undo(self, model: GraphModule) -> None:
        """Give the parameters the values that they had before, and put modules and nodes back.

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
        for path, module in self.replaced.items():
            model.set_submodule(path, module.train(model.training))
        take_out(model, self.inserted)

    def undone(self, model: GraphModule) -> GraphModule:
        """Return ``model`` as it was before, a copy where anything changed; errors and exceptions as in ``undo``."""
        if self.are_none:
            return model
        copied = copy_graph(model)
        self.undo(copied)
        return copied


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
