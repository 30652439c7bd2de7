"""The float model inside a prepared one: its own weights, and no quantizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

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
def in_float(module: nn.Module, weights: Mapping[str, Tensor], path: str = "") -> Iterator[None]:
    """Let ``module`` compute with the weights given and its quantizers off; all is as before afterwards.

    Args:
        module: at ``path`` in the model.
        weights: by path in the model; a parameter that is not among them did not exist.
        path: of the module.
    """
    switched = [one for one in module.modules() if isinstance(one, TensorQuantizer) and one.is_quant_enabled]
    stored: list[tuple[nn.Parameter, Tensor]] = []
    seen: set[int] = set()
    absent: list[tuple[nn.Module, str, nn.Parameter]] = []
    for owner_path, owner in module.named_modules(prefix=path):
        for name, parameter in owner._parameters.items():
            if parameter is None or isinstance(owner, TensorQuantizer):
                continue
            found = weights.get(f"{owner_path}.{name}".lstrip("."))
            if found is None:
                absent.append((owner, name, parameter))
            elif id(parameter) not in seen:
                seen.add(id(parameter))
                stored.append((parameter, found))
    try:
        for quantizer in switched:
            quantizer.disable_quant()
        # Values are exchanged, not parameters: an LSTM holds its parameters in a list beside the registry.
        stored = [(parameter, _exchanged(parameter, value)) for parameter, value in stored]
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


def _exchanged(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Give ``parameter`` a value and return what it had."""
    before = parameter.data
    parameter.data = value
    return before
