"""What a model gives to its parts as it runs: recorded at their calls, and bounded."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.compare.outputs import copies, running_alike
from fxq.compare.traced import plain_transformers

MOST_CALLS, _MOST_BYTES = 16, 2**27


def run_alike(model: nn.Module, inputs: Inputs) -> Any:
    """Return what ``model`` makes of copies of ``inputs``: in eval mode, with the same random numbers each time."""
    with plain_transformers(), running_alike(model):
        return nn.Module.__call__(model, *copies(inputs.args), **copies(inputs.kwargs))


def count_calls(model: nn.Module, inputs: Inputs) -> Counter[str]:
    """Return how often each module of ``model`` is called on ``inputs``, by path."""
    counts: Counter[str] = Counter()

    def count(path: str) -> Any:
        def hook(*_: Any) -> None:
            counts[path] += 1

        return hook

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            stack.callback(module.register_forward_pre_hook(count(path)).remove)
        run_alike(model, inputs)
    return counts


@contextlib.contextmanager
def recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Inputs]]]:
    """Record copies of what ``modules`` are called with, by the names they have there.

    At most ``MOST_CALLS`` of each, and after the first no more than 128 MB; a call that holds no number at all (no
    detections, so nothing to look at) is none.
    """
    calls: dict[str, list[Inputs]] = {name: [] for name in modules}
    sizes: Counter[str] = Counter()

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found, size = calls[name], _bytes((args, kwargs))
            if len(found) >= MOST_CALLS or (found and sizes[name] + size > _MOST_BYTES) or not size:
                return
            sizes[name] += size
            found.append(Inputs(copies(args), copies(kwargs)))

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(note(name), with_kwargs=True).remove)
        yield calls


def record_calls(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Iterable[Inputs]
) -> dict[str, list[Inputs]]:
    """Return what ``model`` gives to ``modules`` of it as it runs on ``inputs``: see :func:`recording`."""
    with recording(modules) as calls:
        for one in inputs:
            run_alike(model, one)
    return calls


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
