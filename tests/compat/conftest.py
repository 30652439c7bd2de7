"""What code written for pytorch-quantization takes for granted: a GPU, and that it is alone in the process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fxq.compat import install_alias
from fxq.compat.pytorch_quantization import nn as quant_nn
from fxq.compat.pytorch_quantization import quant_modules


class OnTheCpu(TorchFunctionMode):
    """Makes what is asked for on the GPU on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let ``.cuda()`` and ``device='cuda'`` of a script pass on a machine without a GPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    with OnTheCpu():
        yield


@pytest.fixture
def alias() -> Iterator[None]:
    """Let ``import pytorch_quantization`` find fxq.compat."""
    with install_alias():
        yield


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the global switches and class defaults that a script sets."""
    for name in quant_nn.__all__:
        for default in ("default_quant_desc_input", "default_quant_desc_weight"):
            kind = getattr(quant_nn, name)
            if default in vars(kind):
                monkeypatch.setattr(kind, default, getattr(kind, default))
            elif hasattr(kind, default):
                monkeypatch.setattr(kind, default, getattr(kind, default), raising=False)
    yield
    quant_modules.deactivate()
    quant_nn.TensorQuantizer.use_fb_fake_quant = False
