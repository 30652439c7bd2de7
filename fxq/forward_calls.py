"""What a user's own ``forward(model, batch)`` gives to the model that it calls."""

import contextlib
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxq.batches import Forward, Inputs


def seen_call(gm: GraphModule, batch: Any, forward: Forward) -> Inputs:
    """Let the user's function feed a batch; return the arguments with which it called the model first, or none."""
    found: list[Inputs] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(Inputs(args, kwargs))

    handle = gm.register_forward_pre_hook(note, with_kwargs=True)
    try:
        forward(gm, batch)
    finally:
        handle.remove()
    return found[0] if found else Inputs((), {})


class _StopForward(BaseException):
    """Ends a user's forward where it calls the model; no Exception, which it might catch."""


def first_call(gm: GraphModule, batch: Any, forward: Forward) -> Inputs | None:
    """Return the arguments of the first call of the model by ``forward``, which is stopped there."""
    found: list[Inputs] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Inputs(args, kwargs))
        raise _StopForward

    handle = gm.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with contextlib.suppress(_StopForward):
            forward(gm, batch)
    finally:
        handle.remove()
    return found[0] if found else None
