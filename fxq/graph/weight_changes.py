"""WeightChanges: what calibration did to weights and modules, so that the next calibration can start anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.graph.data_stage import DataStage
from fxq.graph.edges import take_out
from fxq.graph.modules import copy_graph
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer


@dataclass(frozen=True)
class WeightChanges:
    """Parameters before and after calibration, by path.

    Args:
        before: None where there was none.
        after: the same paths.
        replaced: the modules in whose place others were put, by path.
        inserted: names of nodes that were inserted; each calls a module on what it reads.
        switched_off: paths of quantizers that were switched off.
        equivalent: of the float model that equivalent rewrites made of it; a path that it lacks has no parameter there.
    """

    before: Mapping[str, Tensor | None] = field(default_factory=dict)
    after: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, nn.Module] = field(default_factory=dict)
    inserted: tuple[str, ...] = ()
    switched_off: tuple[str, ...] = ()
    equivalent: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def are_none(self) -> bool:
        """Did calibration leave everything as it was?"""
        return not (self.after or self.replaced or self.inserted or self.switched_off)

    @classmethod
    def since(cls, weights: Mapping[str, Tensor], model: nn.Module, stage: DataStage) -> "WeightChanges":
        """Return what differs between ``weights``, by path, and those that ``model`` has now, and what ``stage`` notes.

        Inserted modules have no parameters.
        """
        before: dict[str, Tensor | None] = {}
        after: dict[str, Tensor] = {}
        for path, parameter in weights_of(model).items():
            was = weights.get(path)
            if was is None or not are_equal(was, parameter):
                before[path], after[path] = was, parameter.detach().clone()
        in_float = weights if stage.weights is None else stage.weights
        equivalent = {path: in_float[path] for path in after if path in in_float}
        return cls(before, after, dict(stage.replaced), tuple(stage.inserted), tuple(stage.switched_off), equivalent)

    def float_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return by path the weights with which ``model`` computes, quantizers off, what the float model does.

        They are its own where it was trained or loaded since.
        """
        found = weights_of(model)
        own = {path: parameter.detach() for path, parameter in found.items()}
        if not self._are_in(found):
            return own
        kept = {path: value for path, value in own.items() if path not in self.after}
        return kept | {path: value.to(own[path].device) for path, value in self.equivalent.items()}

    def equivalent_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return by path the weights of ``model``, the float model prepared anew, as equivalent rewrites made them.

        It gets the parameters that it does not have.
        """
        found = weights_of(model)
        for path, value in self.equivalent.items():
            if path not in found:
                owner, _, name = path.rpartition(".")
                model.get_submodule(owner).register_parameter(name, nn.Parameter(value.clone(), requires_grad=False))
        return {path: parameter.detach() for path, parameter in found.items()} | dict(self.equivalent)

    def undo(self, model: GraphModule) -> None:
        """Switch quantizers on again; give the parameters the values that they had before, put modules and nodes back.

        Where a parameter is no longer what calibration left, the model was trained or loaded since: then parameters,
        modules and nodes stay as they are, and that is what the next calibration starts from.
        """
        for path in self.switched_off:
            quantizer = model.get_submodule(path)
            assert isinstance(quantizer, TensorQuantizer)
            quantizer.enable()
        found = weights_of(model)
        if not self._are_in(found):
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

    def _are_in(self, found: Mapping[str, nn.Parameter]) -> bool:
        """Return whether the weights are still those that calibration left."""
        return all(path in found and are_equal(value, found[path]) for path, value in self.after.items())


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by path, those of ranges excepted; tied ones under each of their paths."""
    return {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in named_modules(model, remove_duplicate=False)
        if not isinstance(module, TensorQuantizer)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def are_equal(value: Tensor, parameter: Tensor) -> bool:
    """Return whether two tensors hold the same, wherever they are."""
    is_like = value.shape == parameter.shape and value.dtype == parameter.dtype
    return is_like and torch.equal(value.to(parameter.device), parameter.detach())
