"""Why a model could not be traced, in words that say where in the model's code and what to do about it."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fxq.batches import Inputs
from fxq.errors import FxqError, InputError, TraceError
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.source_lines import is_user_code
from fxq.kinds import WEIGHTED_KINDS, class_kind

_MOST_SHOWN = 5


def explain_failure(
    tracer: ShapeTracer, model: nn.Module, example_inputs: tuple[Any, ...] | None, error: BaseException
) -> FxqError:
    """Return the error for the user: InputError if the model itself refuses the inputs, TraceError otherwise."""
    path, failed = failed_where(tracer, model, error)
    refused = None if example_inputs is None else refusal(model, example_inputs, failed, error)
    if refused is not None:
        return refused
    shapes = "pass example_inputs, so that shapes are known; or " if example_inputs is None else ""
    failed = f"cannot trace {failed}"
    return TraceError(f"{failed}; {shapes}{leaf_cure(model, path)}", path, failed)


def failed_where(tracer: ShapeTracer, model: nn.Module, error: BaseException) -> tuple[str, str]:
    """Return the path of the module whose forward fails, and in words where it does and why."""
    path, kind = _module(tracer, model)
    where = f"module '{path}' ({kind})" if path else f"the model itself ({kind})"
    where = f"{where}, {source_line(error)}"
    if tracer.newest is not None:
        where += f", at node '{tracer.newest.name}'"
    reason = f"{type(error).__name__}: {error}".strip().rstrip(".:")
    return path, f"{where}: {reason}"


def leaf_cure(model: nn.Module, path: str) -> str:
    """Return what to do about the module at ``path`` of ``model``, which cannot be traced."""
    if path:
        leaf = f'name the module as a leaf: recipe.replace(leaf_modules=("{path}",)); it is then left in float'
        return f'{leaf}, as with untraceable="float"{_islands_cure(model, path)}'
    leaf = "move that code into a submodule and name it in recipe.replace(leaf_modules=...); it is then left in float"
    return f"{leaf}{_islands_cure(model, path)}"


def _islands_cure(model: nn.Module, path: str) -> str:
    """Return what there is to quantize around the module at ``path``; "" where there is nothing."""
    found, within, module = list[str](), "", model
    for name in (*path.split("."), "") if path else ("",):
        found += [f"{within}{child}" for child, part in module.named_children() if child != name and has_layers(part)]
        if name:
            within, module = f"{within}{name}.", module.get_submodule(name)
    if not found:
        return ""
    shown = ", ".join(found[:_MOST_SHOWN]) + (f" and {len(found) - _MOST_SHOWN} more" if found[_MOST_SHOWN:] else "")
    around = f"'{path}'" if path else "the model"
    return f'; or untraceable="islands" keeps the Python of {around} and quantizes what traces of {shown}'


def has_layers(module: nn.Module) -> bool:
    """Return whether there is a layer with weights to quantize in ``module``."""
    return any(class_kind(type(part)) in WEIGHTED_KINDS for part in module.modules())


def describe(value: Any) -> str:
    """Return inputs as text: ``float32[1, 3, 224, 224], None``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return ", ".join(
            describe(item) if not isinstance(item, tuple | list) else f"({describe(item)})" for item in value
        )
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _module(tracer: ShapeTracer, model: nn.Module) -> tuple[str, str]:
    """Return path and class of the innermost module whose forward was running."""
    if not tracer.module_stack:
        return "", type(model).__name__
    path, kind = next(reversed(tracer.module_stack.values()))
    return path, getattr(kind, "__name__", str(kind))


def source_line(error: BaseException) -> str:
    """Return file, line and text of the innermost line of the model's own code that led to the error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_code(frame.filename)]
    if not frames:
        return "in torch's own code"
    return f"{frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`"


def refusal(model: nn.Module, example_inputs: tuple[Any, ...], failed: str, error: BaseException) -> InputError | None:
    """Return the error for the user where the model itself fails on the example inputs, else None.

    Args:
        model: the user's.
        example_inputs: positional.
        failed: in words, where tracing failed and why.
        error: what it raised. It may have met something else first, which the model by itself passes.
    """
    own = _own_failure(model, example_inputs)
    if own is None:
        return None
    has_data = not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(example_inputs))
    if has_data and not isinstance(error, type(own)):
        failed = f"{source_line(own)}: {type(own).__name__}: {own}".strip().rstrip(".:")
    return InputError(
        f"the model fails on the example inputs, in {failed}; it got ({describe(example_inputs)}): "
        "pass example_inputs for which model(*example_inputs) runs"
    )


def _own_failure(model: Callable[..., Any], example_inputs: tuple[Any, ...]) -> BaseException | None:
    """Return what the model itself raises on the example inputs."""
    inputs = Inputs(tree_map_only(Tensor, torch.clone, example_inputs), {})
    try:
        args, kwargs = inputs.fitting(model) if isinstance(model, nn.Module) else inputs
        with torch.no_grad():
            model(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the model's own code: it may raise anything, and all of it means: they do not fit
        return error
    return None
