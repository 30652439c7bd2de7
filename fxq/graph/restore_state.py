"""Running a model's Python without leaving traces in it.

A forward may keep what it computes (a cache of attention biases, the last shape); while tracing that would be proxies
and fake tensors, which break the model and share their way into the traced one.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxq.nn.tensor_quantizer import TensorQuantizer


@contextlib.contextmanager
def restored_state(model: nn.Module) -> Iterator[None]:
    """Give every module back the attributes it had, and every dict and list attribute the items it had.

    No quantizer observes meanwhile.
    """
    # A TorchScript module keeps its attributes in C++, where no proxy can get in.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    attributes = [dict(vars(module)) for module in modules]
    containers = [value for values in attributes for value in values.values() if type(value) in (dict, list)]
    items = [container.copy() for container in containers]
    for module in modules:
        if isinstance(module, TensorQuantizer):
            module.disable_calib()  # what runs here is no data to calibrate on
    try:
        yield
    finally:
        for module, values in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(values)
        for container, content in zip(containers, items, strict=True):
            _refill(container, content)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
