"""The second front end: torch.export runs the model, and what it leaves is put back onto the model's own modules.

For models whose Python torch.fx cannot follow: ``**kwargs``, decorators, outputs with a class of their own, tests of
values that are known. The graph is in the words of the first front end: modules as nodes at their paths, functions and
methods of torch, ``meta["val"]`` for the example inputs. Sizes stay open where the model leaves them open; what it
takes for given about them, and about arguments that are no tensors, is checked at each call.
"""

import contextlib
import functools
import inspect
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.errors import InputError, TraceError
from fxq.frontend.rebuilt_graph import RebuiltGraph
from fxq.frontend.simple_sizes import SizesStaySimple
from fxq.frontend.whole_calls import WholeCalls
from fxq.graph.arguments import Fact, check_calls, facts_of, holds
from fxq.graph.hidden_writes import refuse_hidden_writes
from fxq.graph.quiet import quiet_torch
from fxq.graph.shape_tracer import ShapeTracer
from fxq.graph.snapshot import restored_state
from fxq.graph.trace import check_names, copy_modes, erase_dead_questions, leaf_paths, refuse_compiled
from fxq.graph.trace_failure import describe, leaf_cure, refusal, source_line
from fxq.graph.trace_transformer import plain_forward
from fxq.nn import plain_type
from fxq.process_lock import PROCESS_LOCK

logger = logging.getLogger(__name__)

_MOST_SHOWN = 300  # letters of what torch.export says, which goes on for pages


def trace_exported(model: nn.Module, example_inputs: tuple[Any, ...], leaf_modules: Sequence[str] = ()) -> GraphModule:
    """Return ``model`` as a graph module with the same parameters of forward; see :func:`fxq.graph.trace.trace`.

    Raises:
        InputError: the model cannot run on the example inputs.
        TraceError: torch.export does not follow the model, or leaves what a graph cannot hold.
        RecipeError: an entry of ``leaf_modules`` matches nothing.
    """
    refuse_compiled(model)
    tracer = ShapeTracer(leaf_paths(model, leaf_modules))
    calls = WholeCalls(model, tracer.is_leaf_module)
    bound = _bound(model, example_inputs)
    try:
        with (
            PROCESS_LOCK,
            restored_state(model),
            _plain_stacks(model),
            calls.recorded(),
            quiet_torch(),
            torch.no_grad(),
        ):
            program = _export(model, example_inputs, calls)
            rebuilt = RebuiltGraph(model, program, calls, bound)
            check_names(rebuilt.graph)
            if not model.training:
                refuse_hidden_writes(rebuilt.graph.nodes)
            erase_dead_questions(rebuilt.graph)
            check_calls(rebuilt.graph, _facts(bound), _guards(program, bound), rebuilt.result_structure)
            gm = GraphModule(model, rebuilt.graph, plain_type(model).__name__)
            copy_modes(model, gm)
    except (TraceError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the model's own code ran: it may raise anything
        raise _explained(model, example_inputs, error) from error
    return gm


def _guards(program: ExportedProgram, bound: inspect.BoundArguments) -> list[str]:
    """Return what torch.export found to hold about sizes, as far as it can be asked of a call."""
    given = dict(bound.arguments)
    return [guard for guard in getattr(program, "_guards_code", None) or () if holds(guard, given)]


def _bound(model: nn.Module, example_inputs: tuple[Any, ...]) -> inspect.BoundArguments:
    signature = inspect.signature(model.forward)
    args, kwargs = Inputs(example_inputs, {}).fitting(model)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs ({describe(example_inputs)}) do not fit forward{signature}: {error}"
        ) from error


def _facts(bound: inspect.BoundArguments) -> list[Fact]:
    """Return what the graph takes for given: all but tensors, and that tensors are given where they are optional."""
    facts: list[Fact] = []
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        is_starred = parameter.kind is parameter.VAR_POSITIONAL
        value = bound.arguments.get(name, () if is_starred else parameter.default)
        if isinstance(value, Tensor):
            facts += [Fact(name, False, (), "is None")] if parameter.default is None else []
        else:
            facts += facts_of(name, value)
    return facts


def _export(model: nn.Module, example_inputs: tuple[Any, ...], calls: WholeCalls) -> ExportedProgram:
    """Export with as many open sizes as the model allows."""
    *attempts, last = _attempts(example_inputs)
    for inputs, is_open in attempts:
        try:
            return _attempt(model, inputs, is_open, calls)
        except (TraceError, KeyboardInterrupt, GuardOnDataDependentSymNode):
            raise
        except BaseException as error:  # whatever open sizes make torch, or the model, raise
            logger.debug("torch.export with open sizes: %s: %s", type(error).__name__, error)
    return _attempt(model, *last, calls)


def _attempt(
    model: nn.Module, inputs: tuple[Any, ...], is_open: Callable[[Tensor, int], bool], calls: WholeCalls
) -> ExportedProgram:
    calls.calls.clear()
    shapes = _shapes(_bound(model, inputs).arguments, is_open)
    with (
        contextlib.redirect_stderr(io.StringIO()),
        SizesStaySimple(),
    ):  # torch prints the graph that it could not finish
        args, kwargs = Inputs(inputs, {}).fitting(model)
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _attempts(example_inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Callable[[Tensor, int], bool]]]:
    """Yield inputs, and which of their dimensions are to be open: all, that of the batch, none.

    torch.export takes a size of 1 for a constant, so that one sample is taken twice.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    batch = len(tensors[0]) if tensors else 0
    if batch == 1:
        twice = pytree.tree_map_only(
            Tensor, lambda x: torch.cat([x, x]) if x.dim() and len(x) == 1 else x, example_inputs
        )
        yield twice, lambda tensor, dim: True
    yield example_inputs, lambda tensor, dim: True
    yield example_inputs, lambda tensor, dim: dim == 0 and len(tensor) == batch
    yield example_inputs, lambda tensor, dim: False


def _shapes(arguments: Any, is_open: Callable[[Tensor, int], bool]) -> Any:
    def sizes(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return {dim: Dim.AUTO if is_open(leaf, dim) else Dim.STATIC for dim in range(leaf.dim())}

    return pytree.tree_map(sizes, dict(arguments))


def _explained(model: nn.Module, example_inputs: tuple[Any, ...], error: BaseException) -> Exception:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".:")
    where = f"{source_line(error)}: {type(error).__name__}: {reason[:_MOST_SHOWN]}"
    refused = refusal(model, example_inputs, where, error)
    if refused is not None:
        return refused
    if "fake tensor in the exported program" in reason:
        where = "x.data, whose memory it loses sight of: write y = x * 2 or x.mul_(2) in the model, or read x.detach()"
    reason = f"torch.export cannot follow the model ({type(model).__name__}), in {where}"
    return TraceError(f"{reason}; {leaf_cure(model, '')}", reason=reason)


@contextlib.contextmanager
def _plain_stacks(model: nn.Module) -> Iterator[None]:
    """Let torch.nn's transformer stacks compute what they define, in Python, and no fused kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module in model.modules():  # whose attributes somebody else puts back
        plain = plain_forward(module)
        if plain is not None:
            module.forward = functools.partial(plain, module)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
