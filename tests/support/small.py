"""Small networks for tests of the public API, and what must not change about a user's model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Conv, batch norm, relu, conv + add, relu, dropout, linear: a ResNet in one breath."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        x = F.relu(self.conv2(x) + x)
        return self.fc(self.dropout(x.mean((2, 3))))


def residual() -> nn.Module:
    """Return a seeded Residual in eval mode whose batch norm statistics are not the initial ones."""
    torch.manual_seed(0)
    model = Residual()
    model.bn.running_mean.uniform_(-0.2, 0.2)
    model.bn.running_var.uniform_(0.5, 2)
    return model.eval()


def images(count: int, seed: int = 1) -> Tensor:
    """Return seeded noise, shape (count, 1, 8, 8)."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that a caller may notice about a model: tensors and their values, hooks, modes, code."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modules": [(path, id(module), module.training) for path, module in model.named_modules()],
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
        "tensors": {name: (id(value), value.dtype, value.requires_grad) for name, value in tensors.items()},
        "versions": {name: value._version for name, value in tensors.items()},
        "values": {name: value.detach().clone().tolist() for name, value in tensors.items()},
        "grads": {name: value.grad is None for name, value in tensors.items()},
        "state_dict": list(model.state_dict()),
        "hooks": {path: _hooks(module) for path, module in model.named_modules()},
        "forwards": [(path, module.forward.__func__) for path, module in model.named_modules()],
        "meta": repr(getattr(model, "meta", None)),
    }


def _hooks(module: nn.Module) -> list[int]:
    registries = [value for name, value in sorted(vars(module).items()) if name.endswith("_hooks")]
    return [id(hook) for registry in registries if isinstance(registry, dict) for hook in registry.values()]
