"""The model that the user handed over, to compare with: not kept alive, and believed only while it is what it was."""

import hashlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxq.given_model import as_module
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer

_AS_IN_NUMPY = frozenset({torch.float32, torch.int64})
_SMALL = 4096  # elements: those of a larger tensor are summed, on its device


@dataclass(frozen=True)
class Original:
    """A model, as long as somebody else keeps it.

    Args:
        reference: a weak one, to the model as it was given.
        checksum: of its tensors when it was prepared.
        prepared: that of the prepared model then.
        form: dtype and shape of its tensors by path.
    """

    reference: weakref.ref[Any]
    checksum: str
    prepared: str
    form: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, prepared: nn.Module) -> "Original":
        """Remember ``model``, a module or what stands for one, of which ``prepared`` was made."""
        module = as_module(model)
        return cls(weakref.ref(model), checksum(module), checksum(prepared), form_of(module))

    @property
    def is_there(self) -> bool:
        """Does somebody keep the model, whatever became of its tensors?"""
        return self.reference() is not None

    def find(self) -> nn.Module | None:
        """Return the model's module if it is there, with the tensors that it had."""
        model: nn.Module | None = as_module(self.reference())
        return model if model is not None and checksum(model) == self.checksum else None


def form_of(model: nn.Module) -> dict[str, str]:
    """Return dtype and shape of each parameter and stored buffer by path, ranges of quantizers aside."""
    return {
        f"{path}.{name}".lstrip("."): f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for path, module in named_modules(model)
        if not isinstance(module, TensorQuantizer)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }


def checksum(model: nn.Module) -> str:
    """Return a sum over all parameters and buffers but those of quantizers: two are equal where no tensor changed.

    One look at each tensor where it is; the same on any device.
    """
    found = hashlib.sha256()
    for path, module in named_modules(model):
        if isinstance(module, TensorQuantizer):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                what = f"{path}.{name} {tensor.dtype} {tuple(tensor.shape)}\n"
                found.update(what.encode(errors="surrogatepass"))
                found.update(_content(tensor))
    return found.hexdigest()


def _content(tensor: Tensor) -> Any:
    """Return the bytes of a small tensor; of others the sums of the bits, read as integers, along rows and columns.

    Nothing for what cannot be read so.
    """
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.numel():
        return b""
    plain = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if plain.numel() <= _SMALL:
        if plain.dtype in _AS_IN_NUMPY and plain.is_cpu and plain.is_contiguous():
            return plain.numpy()  # the same bytes, and most tensors of a large graph are such
        return plain.reshape(-1).view(torch.uint8).cpu().numpy()
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    rows = plain.contiguous().view(integer).reshape(len(plain), -1)
    return str([*rows.sum(1, dtype=torch.int64).tolist(), *rows.sum(0, dtype=torch.int64).tolist()]).encode()
