"""The modules of a model and their tensors, as torch's own walks give them.

torch walks a model by a generator in a generator for each level; that is most of what these walks take, and a graph is
looked at some forty times on its way.
"""

from collections.abc import Iterator

from torch import Tensor, nn


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Return ``list(model.modules())``."""
    found: dict[nn.Module, None] = {model: None}
    _collect(model, found)
    return list(found)


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """Return ``list(model.named_modules(remove_duplicate=remove_duplicate))``."""
    found = [("", model)]
    _walk("", model, {model} if remove_duplicate else None, found)
    return found


def named_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what ``model.named_parameters(remove_duplicate=remove_duplicate)`` does."""
    seen: set[int] = set()
    for path, module in named_modules(model, remove_duplicate):
        for name, parameter in module._parameters.items():
            if parameter is not None and not (remove_duplicate and id(parameter) in seen):
                seen.add(id(parameter))
                yield f"{path}.{name}" if path else name, parameter


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, module by module, by their paths; what two modules share comes twice."""
    for path, module in named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def has_attribute(module: nn.Module, name: str) -> bool:
    """Return ``hasattr(module, name)``, to which nn.Module says no by an exception."""
    if type(module).__getattr__ is not nn.Module.__getattr__:  # a script, or one that hands on what another has
        return hasattr(module, name)
    return (
        name in vars(module)
        or name in module._buffers
        or hasattr(type(module), name)
        or name in module._parameters
        or name in module._modules
    )


def _collect(module: nn.Module, found: dict[nn.Module, None]) -> None:
    for child in module._modules.values():
        if child is not None and child not in found:
            found[child] = None
            if child._modules:  # most have none, and a call for each is what would take the time
                _collect(child, found)


def _walk(prefix: str, module: nn.Module, seen: set[nn.Module] | None, found: list[tuple[str, nn.Module]]) -> None:
    for name, child in module._modules.items():
        if child is None:
            continue
        if seen is not None:
            if child in seen:
                continue
            seen.add(child)
        path = prefix + name
        found.append((path, child))
        if child._modules:
            _walk(f"{path}.", child, seen, found)
