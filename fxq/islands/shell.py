"""A layer as a model of its own: traced as a root it would be entered, and lose its name."""

import inspect
from typing import Any

from torch import nn

_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def shell_of(name: str, layer: nn.Module) -> nn.Module:
    """Return a module that calls ``layer``, its only child, with the same parameters; ``name`` is the child's.

    A layer that takes others than plain parameters is returned itself.
    """
    parameters = list(inspect.signature(layer.forward).parameters.values())
    if any(parameter.kind not in _PLAIN for parameter in parameters):
        return layer
    # Code is made of text, since torch.fx reads the names of the parameters from it.
    defaults: dict[str, Any] = {f"default_of_{one.name}": one.default for one in parameters}
    declared = [one.name if one.default is one.empty else f"{one.name}=default_of_{one.name}" for one in parameters]
    call = f"self.get_submodule({name!r})({', '.join(one.name for one in parameters)})"
    exec(f"def forward({', '.join(['self', *declared])}):\n    return {call}\n", defaults)
    shell = type("Shell", (nn.Module,), {"forward": defaults["forward"]})()
    assert isinstance(shell, nn.Module)
    shell.add_module(name, layer)
    return shell.train(layer.training)
