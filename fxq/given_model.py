"""A model as it is given: what stands for a module, such as a program of torch.export, and the module it stands for."""

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from fxq.errors import InputError
from fxq.module_tree import all_modules, named_modules

# Where arguments say that an operator of aten computes as in training.
_IN_TRAINING = {"dropout": "train", "feature_dropout": "train", "alpha_dropout": "train", "batch_norm": "training"}


def as_module(model: Any) -> Any:
    """Return the module that a program of torch.export, torch.compile or a parallel wrapper stands for.

    Anything else is returned as it is. The module shares its tensors with ``model``.

    Raises:
        InputError: the weights are spread over processes.
    """
    if is_exported(model):
        return model.module()
    inner = _wrapped(model)
    while inner is not None:
        model, inner = inner, _wrapped(inner)
    return model


def own_example_inputs(model: Any) -> Any:
    """Return the (args, kwargs) that a program of torch.export was made with; None for anything else."""
    return model.example_inputs if is_exported(model) else None


def is_exported(model: Any) -> bool:
    """Return whether ``model`` is a torch.export.ExportedProgram."""
    return _is_a(model, "torch.export.exported_program", "ExportedProgram")


def wrappers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the modules inside ``model`` that only stand for another one, and that one."""
    for module in all_modules(model):
        inner = _wrapped(module)
        if inner is not None:
            yield module, as_module(inner)


def holds_program(model: nn.Module) -> bool:
    """Return whether ``model`` calls operators of aten, as the module of a program of torch.export does, or holds such.

    Raises:
        InputError: they compute as in training.
    """
    found = False
    for path, module in named_modules(model):
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
                found = True
                _check_inference(node, path)
    return found


def _check_inference(node: Node, path: str) -> None:
    assert isinstance(node.target, OpOverload)
    name = _IN_TRAINING.get(node.target._schema.name.removeprefix("aten::"))
    arguments = [one.name for one in node.target._schema.arguments]
    if name is None:
        return
    position = arguments.index(name)
    if node.kwargs.get(name, node.args[position] if position < len(node.args) else False):
        where = f"module {path!r} of the model" if path else "the model"
        raise InputError(
            f"{where} was exported in training mode ({node.name!r} computes as in training), which eval() cannot "
            "change any more: export it again after model.eval()"
        )


def _wrapped(model: Any) -> nn.Module | None:
    """Return the module that ``model`` runs and adds nothing to; None where it is no such wrapper."""
    if _is_a(model, "torch._dynamo.eval_frame", "OptimizedModule"):
        inner: nn.Module = model._orig_mod
        return inner
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        parallel: nn.Module = model.module
        return parallel
    if _is_a(model, "torch.distributed.fsdp", "FullyShardedDataParallel"):
        raise InputError(
            "the weights of FullyShardedDataParallel are spread over processes: load its full state dict into the "
            "plain model, and prepare that"
        )
    return None


def _is_a(value: Any, module: str, name: str) -> bool:
    """Return isinstance(value, module.name), without importing what takes long: unless it is loaded, nothing is one."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
