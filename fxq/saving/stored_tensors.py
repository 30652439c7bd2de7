"""The tensors of a prepared model by path: taken out of its modules, and put back into those of another one."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.errors import SavedModelError
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer
from fxq.saving.packed import OWN

_MOST_SHOWN = 5


def stored_tensors(gm: GraphModule) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters and buffers by path, each once, and for the other paths of tied ones the first.

    Raises:
        SavedModelError: one cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, _, _, tensor in _slots(gm):
        if tensor is None:
            continue
        if id(tensor) in first:
            ties[path] = first[id(tensor)]
            continue
        _check(path, tensor)
        first[id(tensor)], tensors[path] = path, tensor.detach()
    return tensors, ties


def put_back(gm: GraphModule, tensors: Mapping[str, Tensor], ties: Mapping[str, str], frozen: set[str]) -> None:
    """Give the modules of ``gm`` their tensors, in place where there is one of that shape.

    Args:
        gm: made as the one that was saved.
        tensors, ties: as of :func:`stored_tensors`.
        frozen: paths of the parameters that take no gradient.

    Raises:
        SavedModelError: the modules hold other tensors.
    """
    found = {path: (owner, name, tensor) for path, owner, name, tensor in _slots(gm)}
    absent = sorted(tensors.keys() - found.keys())
    extra = [
        path
        for path, (owner, _, tensor) in found.items()
        if tensor is not None and path not in tensors and path not in ties and not isinstance(owner, TensorQuantizer)
    ]
    unlike = [path for path, one in ties.items() if path not in found or found[path][2] is not found[one][2]]
    if absent or extra or unlike:
        parts = (("lacks", absent), ("has in addition", extra), ("does not share", unlike))
        listed = "; ".join(f"{word} {', '.join(names[:_MOST_SHOWN])}" for word, names in parts if names)
        raise SavedModelError(f"the model prepared anew holds other tensors than the saved one: it {listed}")
    device = next((tensor.device for _, _, tensor in found.values() if tensor is not None), torch.device("cpu"))
    for path, (owner, name, tensor) in found.items():
        value = tensors.get(path)
        if value is not None:
            _put(owner, name, tensor, value.to(device if tensor is None else tensor.device))
        elif tensor is not None and path not in ties:
            setattr(owner, name, None)  # a range that was taken away
    for path, parameter in gm.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(path not in frozen)


def _put(owner: nn.Module, name: str, tensor: Tensor | None, value: Tensor) -> None:
    if tensor is not None and tensor.shape == value.shape and tensor.dtype == value.dtype:
        with torch.no_grad():
            tensor.copy_(value)
    else:
        setattr(owner, name, nn.Parameter(value, value.is_floating_point()) if name in owner._parameters else value)


def _slots(gm: GraphModule) -> Iterator[tuple[str, nn.Module, str, Tensor | None]]:
    """Yield the path of each place for a tensor, its module, its name there, and the tensor."""
    for path, module in named_modules(gm):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            yield f"{path}.{name}".lstrip("."), module, name, tensor


def _check(path: str, tensor: Tensor) -> None:
    if path.startswith(OWN):
        raise SavedModelError(f"cannot save {path!r}: names that begin with {OWN!r} are fxq's own; rename the module")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
        raise SavedModelError(f"cannot save {path!r}, which is {what}: only plain tensors with values can be stored")
