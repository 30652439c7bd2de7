"""Does a model return something else each time? Then it can be compared with nothing."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxq.compare.outputs import Named, named_outputs, run_once
from fxq.graph.source_lines import user_line

_OTHER_SEED = 1


def lines_of_chance(model: nn.Module, inputs: tuple[Any, ...], outputs: Named) -> str | None:
    """Return which lines of ``model`` draw the random numbers that change its outputs; None where none do.

    Args:
        model: not modified.
        inputs: positional; it runs on them.
        outputs: of :func:`named_outputs`.
    """
    if are_equal(outputs, run_once(model, inputs, _OTHER_SEED).outputs):
        return None
    with contextlib.suppress(Exception), _Draws() as draws:  # some of torch's operators refuse to run under a mode
        named_outputs(model, inputs)
    return "; ".join(draws.lines) or "torch's own code"


def are_equal(outputs: Named, others: Named) -> bool:
    """Return whether two runs returned the same, bit for bit; NaN is NaN."""
    return [name for name, _ in outputs] == [name for name, _ in others] and all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
        for (_, one), (_, other) in zip(outputs, others, strict=True)
    )


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Notes the lines of the model's code that draw random numbers of the default generators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Attention has the tag without dropout too; on a GPU it has to do.
        before = torch.default_generator.get_state()
        result = func(*args, **(kwargs or {}))
        is_on_gpu = any(isinstance(one, torch.Tensor) and one.is_cuda for one in args)
        if torch.Tag.nondeterministic_seeded in func.tags and (
            is_on_gpu or not torch.equal(before, torch.default_generator.get_state())
        ):
            line = user_line(inspect.currentframe())
            self.lines += [] if line in self.lines else [line]
        return result
