"""The front end: an nn.Module becomes a torch.fx graph that keeps modules as nodes.

Each node knows where it comes from (``meta["nn_module_stack"]``, ``stack_trace``) and, with example inputs, what it
computes (``meta["val"]``: a fake tensor with shape and dtype, or a number). Tests of shapes in Python are decided
with the example shapes; sizes that are only passed on stay nodes, so that another batch size works.
"""

import difflib
import inspect
import keyword
import math
import operator
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fxq.batches import Inputs
from fxq.errors import InputError, RecipeError, TraceError
from fxq.graph.arguments import Fact, check_calls
from fxq.graph.autograd_functions import functions_traced_through
from fxq.graph.hidden_writes import refuse_hidden_writes, show_data
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.size_decisions import KEY, SizeDecisions
from fxq.graph.snapshot import restored_state
from fxq.graph.trace_failure import describe, explain_failure, leaf_cure
from fxq.graph.type_questions import types_may_be_asked
from fxq.module_tree import named_modules
from fxq.nn import plain_type
from fxq.process_lock import PROCESS_LOCK

# What ends or changes a text in double quotes, or has no place in source code: halves of characters too.
_NO_LITERAL = frozenset({*'"\\\n\r\0', *map(chr, range(0xD800, 0xE000))})
_QUESTION_METHODS = frozenset({"size", "numel", "nelement", "stride", "dim"})
_QUESTION_FUNCTIONS = frozenset({
    getattr, round, operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
    operator.mod, operator.pow, operator.neg, operator.abs, operator.eq, operator.ne, operator.lt, operator.le,
    operator.gt, operator.ge, operator.and_, operator.or_, math.sqrt, math.floor, math.ceil, math.log, math.log2,
    math.prod, math.pow,
})  # fmt: skip


def trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    leaf_modules: Sequence[str] = (),
    is_trained: bool = False,
) -> GraphModule:
    """Return ``model`` as a graph module with the same call signature; its leaf modules are shared, not copied.

    Modules of torch.nn (but not containers, nor stacks of transformer layers) and of fxq stay whole. A parameter of
    forward whose example or default is None, a flag or a text is burned in; so is a number, a length or a key that the
    model's Python decides by. A call with another one is an InputError.

    Args:
        model: traced in the mode it is in.
        example_inputs: positional inputs; without them, tests of shapes cannot be followed and ``val`` is missing.
        leaf_modules: further modules to keep whole, as globs on module paths or class names.
        is_trained: parameters will change, so that the model's Python may not decide by them.

    Raises:
        InputError: the model cannot run on the example inputs.
        TraceError: the model's Python depends on what is not known while tracing.
        RecipeError: an entry of ``leaf_modules`` matches nothing.
    """
    leaves = leaf_paths(model, leaf_modules)
    _check_followable(model)
    inputs, defaults = bound_inputs(model, example_inputs)
    tracer = ShapeTracer(leaves, inputs, defaults)
    try:
        with PROCESS_LOCK, restored_state(model) as put_attributes_back, types_may_be_asked(model):
            # As at inference, whatever the caller's mode is.
            with torch.no_grad(), functions_traced_through(is_trained):
                graph = tracer.trace(model)
            show_data(graph)
            if not model.training:  # else the graph is only compared with that of evaluation
                refuse_hidden_writes(graph.nodes)
            decisions = SizeDecisions.of(model, graph, tracer.decisions)
            check_calls(graph, [*tracer.facts, *_given(graph, inputs)])
            refuse_assigned_buffers(model, named_modules(model))
            erase_dead_questions(graph)
            check_names(graph)
            put_attributes_back()  # the graph reads what a tensor was before forward assigned another
            traced = GraphModule(model, graph, plain_type(model).__name__)
            _check_answers(model, tracer, is_trained)
            if decisions is not None:
                traced.meta[KEY] = decisions
    except (TraceError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the model's own code ran: it may raise anything, SystemExit too
        raise explain_failure(tracer, model, example_inputs, error) from error
    copy_modes(model, traced)
    return traced


def leaf_paths(model: nn.Module, globs: Sequence[str]) -> frozenset[str]:
    """Return the paths of the modules that the globs name."""
    kinds = {path: type(module).__name__ for path, module in named_modules(model) if path}
    leaves: set[str] = set()
    for glob in globs:
        found = {path for path, kind in kinds.items() if fnmatchcase(path, glob) or fnmatchcase(kind, glob)}
        if not found:
            close = difflib.get_close_matches(glob, {*kinds, *kinds.values()}, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "see model.named_modules()"
            raise RecipeError(f"leaf_modules names {glob!r}, which is no module path or class of the model; {hint}")
        leaves |= found
    return frozenset(leaves)


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model without Python to follow.

    Raises:
        TraceError: it is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(inspect.unwrap(type(model).forward), FunctionType):
        raise TraceError(
            f"the model ({type(model).__name__}) is compiled TorchScript; pass the Python module that it was made from"
        )


def _check_followable(model: nn.Module) -> None:
    """Refuse what fx would silently leave out of the graph: it reads the class's forward and nothing around it."""
    name = type(model).__name__
    refuse_compiled(model)
    if "forward" in vars(model):
        raise TraceError(
            f"the model ({name}) has its forward replaced on the instance; define it in a subclass instead "
            "(of a model from torch.compile, pass model._orig_mod)"
        )
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, GraphModule):
        raise TraceError(f"the model ({name}) overrides __call__, which a graph cannot hold; override forward instead")
    if model._forward_hooks or model._forward_pre_hooks:
        raise TraceError(
            f"the model ({name}) has forward hooks, which a graph cannot hold; remove them, or wrap the model in "
            f"torch.nn.Sequential so that they are traced"
        )


def bound_inputs(model: nn.Module, example_inputs: tuple[Any, ...] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs by parameter name, and the defaults of the parameters that got none."""
    signature = inspect.signature(inspect.unwrap(type(model).forward))
    parameters = list(signature.parameters.values())[1:]
    signature = signature.replace(parameters=parameters)
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    if example_inputs is None:
        return {}, defaults
    args, kwargs = Inputs(example_inputs, {}).fitting(model)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        wanted = signature.replace(return_annotation=inspect.Signature.empty)
        raise InputError(
            f"the model's forward takes {wanted} and got {len(example_inputs)} example inputs "
            f"({describe(example_inputs)}): {error}; pass one for each parameter without default, in order"
        ) from error
    given = dict(bound.arguments)
    bound.apply_defaults()  # also () and {} for *args and **kwargs
    return given, {name: value for name, value in bound.arguments.items() if name not in given}


def refuse_assigned_buffers(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse a forward that assigned a buffer: in the graph it would keep the value that it has now.

    Args:
        model: was traced, and not put back since.
        modules: some of it, with their paths.
    """
    for path, module in modules:
        for name, buffer in module._buffers.items():
            if isinstance(buffer, torch.fx.Proxy):
                failed = (
                    f"cannot trace module '{path}' ({type(module).__name__}): its forward assigns the buffer '{name}'"
                )
                cure = f"change it in place (copy_, add_), or {leaf_cure(model, path)}"
                raise TraceError(f"{failed}; {cure}", path, failed)


def _check_answers(model: nn.Module, tracer: ShapeTracer, is_trained: bool) -> None:
    """Refuse a graph that holds what the model's Python made of a stored tensor which is going to change."""
    found = tracer.numbers.stored.why_unsettled(model, is_trained)
    if found is not None:
        path, reason = found
        raise TraceError(f"{reason}; or {leaf_cure(model, path)}", path, reason)


def _given(graph: Graph, inputs: dict[str, Any]) -> list[Fact]:
    """Return that optional inputs are given: those the graph reads."""
    optional = [
        str(node.target)
        for node in graph.nodes
        if node.op == "placeholder" and node.args and node.args[0] is None and node.target in inputs
    ]
    return [Fact(name, False, (), "is None") for name in optional if inputs[name] is not None]


def check_names(graph: Graph) -> None:
    """Refuse names that torch.fx writes into the code of a graph as they are, where they would be other code."""
    for node in graph.nodes:
        path = str(node.target) if node.op in ("call_module", "get_attr") else ""
        parts = path.split(".")
        odd = [part for part in parts if keyword.iskeyword(part) or any(letter in _NO_LITERAL for letter in part)]
        if odd or node.name == "self":
            name = odd[0] if odd else "self"
            raise TraceError(
                f"cannot trace {path or node.name!r}: torch.fx writes names of modules and tensors into Python code, "
                f"where {name!r} is no name, or another; rename it in the model"
            )


def erase_dead_questions(graph: Graph) -> None:
    """Erase the nodes without effect that only served a decision which Python has taken."""
    for node in reversed(graph.nodes):
        if not node.users and _is_question(node):
            graph.erase_node(node)


def _is_question(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUESTION_METHODS
    return node.op == "get_attr" or (node.op == "call_function" and node.target in _QUESTION_FUNCTIONS)


def copy_modes(model: nn.Module, traced: GraphModule) -> None:
    """Give the rebuilt containers the train or eval mode, and buffers the persistence, that the model's own have."""
    for path, module in named_modules(traced):
        original = model.get_submodule(path)
        if module is original:
            continue
        module.training = original.training
        module._non_persistent_buffers_set |= original._non_persistent_buffers_set & set(module._buffers)
