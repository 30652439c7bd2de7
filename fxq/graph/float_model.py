"""The float model inside a prepared one: its own weights, and no quantizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from fxq.module_tree import all_modules
from fxq.nn import TensorQuantizer


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters of ``model`` by path; tied ones have several paths and one copy."""
    copies: dict[int, Tensor] = {}
    return {
        path: copies.setdefault(id(parameter), parameter.detach().clone())
        for path, parameter in model.named_parameters(remove_duplicate=False)
    }


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of ``model`` by path, not copied."""
    return {path: parameter.detach() for path, parameter in model.named_parameters(remove_duplicate=False)}


@contextmanager
def in_float(module: nn.Module, weights: Mapping[str, Tensor] | None = None, path: str = "") -> Iterator[None]:
    """Let ``module`` compute with the weights given and its quantizers off; all is as before afterwards.

    Args:
        module: at ``path`` in the model.
        weights: by path in the model; a parameter that is not among them did not exist. None: its own.
        path: of the module.
    """
    switched = [one for one in all_modules(module) if isinstance(one, TensorQuantizer) and one.is_quant_enabled]
    found, absent = ([], []) if weights is None else _sorted_by_weights(module, weights, path)
    stored: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for quantizer in switched:
            quantizer.disable_quant()
        # Values are exchanged, not parameters: an LSTM holds its parameters in a list beside the registry.
        for parameter, value in found:
            stored.append((parameter, _exchanged(parameter, value)))
        for owner, name, _ in absent:
            owner._parameters[name] = None
        yield
    finally:
        for parameter, value in stored:
            parameter.data = value
        for owner, name, parameter in absent:
            owner._parameters[name] = parameter
        for quantizer in switched:
            quantizer.enable_quant()


def _sorted_by_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: str
) -> tuple[list[tuple[nn.Parameter, Tensor]], list[tuple[nn.Module, str, nn.Parameter]]]:
    """Return each parameter with the weight that it is to have, and those that have none, with owner and name."""
    found: dict[nn.Parameter, Tensor] = {}
    absent: list[tuple[nn.Module, str, nn.Parameter]] = []
    for owner_path, owner in module.named_modules(prefix=path):
        for name, parameter in owner._parameters.items():
            if parameter is None or isinstance(owner, TensorQuantizer):
                continue
            value = weights.get(f"{owner_path}.{name}".lstrip("."))
            if value is None:
                absent.append((owner, name, parameter))
            else:
                found.setdefault(parameter, value)
    return list(found.items()), absent


def _exchanged(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Give ``parameter`` a value and return what it had."""
    before = parameter.data
    parameter.data = value
    return before
