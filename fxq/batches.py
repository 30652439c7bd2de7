"""What people call a batch, as the arguments of a model call."""

import difflib
import inspect
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq.cures import cure_of_batch
from fxq.errors import FxqError, InputError

logger = logging.getLogger(__name__)

# What training wants beside the inputs: forward takes it to return a loss, and a deployed model has no use for it.
LABELS = frozenset({"label", "labels", "label_ids", "target", "targets", "start_positions", "end_positions"})
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
Forward = Callable[[GraphModule, Any], Any]
ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | None


class Inputs(NamedTuple):
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def samples(self) -> int | None:
        """The size of dimension 0 of the first tensor that has one; None without such a tensor.

        None too where integers are of another size: edges of a graph are indices of its nodes, which are no samples.
        """
        tensors = [leaf for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor) and leaf.dim()]
        count = len(tensors[0]) if tensors else None
        others = (one for one in tensors if not one.is_floating_point() and one.dtype is not torch.bool)
        return None if any(len(one) not in (1, count) for one in others) else count

    def fitting(self, model: nn.Module) -> "Inputs":
        """Return them as ``model`` takes them, whose graph takes all by position: those by keyword only get a name."""
        if isinstance(model, torch.jit.ScriptModule):  # without a signature, but for one that was scripted
            return self
        signature = inspect.signature(model.forward)
        by_name, kinds = _by_keyword_only(signature), [one.kind for one in signature.parameters.values()]
        first = sum(kind in _BY_POSITION for kind in kinds)
        named = dict(zip(by_name, self.args[first:], strict=False))
        if len(self.args) > first + len(by_name) or inspect.Parameter.VAR_POSITIONAL in kinds:
            return self
        return Inputs(self.args[:first], {**named, **self.kwargs})

    def part(self, start: int, stop: int) -> "Inputs":
        """Return a copy of the samples from ``start`` to ``stop``; a tensor of another batch size is taken whole."""
        count = self.samples

        def cut(tensor: Tensor) -> Tensor:
            is_batched = tensor.dim() > 0 and len(tensor) == count
            return tensor.detach()[start:stop].clone() if is_batched else tensor.detach().clone()

        args, kwargs = pytree.tree_map_only(Tensor, cut, tuple(self))
        return Inputs(args, kwargs)


def call(gm: GraphModule, *args: Any, **kwargs: Any) -> Any:
    """Call a graph module; where it fails, without the traceback of generated code that FX's own call prints."""
    return nn.Module.__call__(gm, *args, **kwargs)


def as_inputs(gm: GraphModule, batch: Any) -> Inputs:
    """Return the arguments that a batch holds for ``gm``, on its device.

    Args:
        gm: the graph module.
        batch: a tensor, a tuple of inputs, a dict of keyword inputs, or the (input, label) of a DataLoader, of which a
            model with one required input takes the first.

    Raises:
        TypeError: the batch is of another form.
    """
    if not isinstance(batch, Tensor | Mapping | tuple | list):
        raise TypeError(f"a batch is a tensor, a tuple or a dict, got {type(batch).__name__}{cure_of_batch(batch)}")
    batch = _on_device_of(gm, batch)
    names, required = _inputs(gm)
    if isinstance(batch, Mapping):
        return Inputs((), _taken(batch, names, without=LABELS - set(_given_inputs(gm))))
    if isinstance(batch, Tensor):
        return Inputs((batch,), {})
    if required == 1 and len(batch) == 2:
        return Inputs((batch[0],), {})  # (input, label)
    if len(batch) > len(names):
        raise TypeError(f"the model takes {len(names)} inputs and the batch has {len(batch)}")
    return Inputs(tuple(batch), {})


@contextmanager
def naming_batch(gm: GraphModule, batch: Any, index: int) -> Iterator[None]:
    """Say which batch it was where one does not fit, or is not floating point where it is quantized.

    Raises:
        InputError: the batch does not fit the model.
        CalibrationError: a quantizer saw NaN or infinity.
    """
    try:
        yield
    except FxqError as error:  # a quantizer refuses what it got
        raise type(error)(f"batch {index} ({describe(batch)}): {error}") from error
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise InputError(
            f"batch {index} ({describe(batch)}) does not fit the model, whose inputs are "
            f"{', '.join(_inputs(gm)[0])}: {error}. Pass forward=lambda model, batch: ... for batches of another form"
        ) from error


def early_end(batches: Iterable[Any], count: int) -> str | None:
    """Return in words that a loader promised more than the ``count`` batches that it gave, None if it did not."""
    try:
        promised = len(batches) if isinstance(batches, Sized) else count
    except TypeError:  # a DataLoader over an iterable dataset does not know
        return None
    if count >= promised:
        return None
    return f"the loader has a length of {promised} batches and ended after {count}; those {count} were used"


def first_inputs(model: nn.Module, batches: Iterable[Any]) -> tuple[tuple[Any, ...] | None, Iterable[Any]]:
    """Return positional inputs made of the first batch, at most two samples of it, and all batches.

    None instead of inputs where the batch is no tensor, tuple or dict, or does not tell which of its items are inputs.
    """
    if isinstance(batches, Tensor | Mapping):
        batches = [batches]  # one batch
    if not isinstance(batches, Iterable) or not isinstance(model, nn.Module):
        return None, batches
    iterator = iter(batches)
    first = next(iterator, None)
    if iterator is batches:  # a generator: what was taken out goes back in front
        batches = itertools.chain([] if first is None else [first], iterator)
    inputs = _positional(model, first)
    tensors = [value for value in inputs or () if isinstance(value, Tensor)]
    if not inputs or not all(value.dim() for value in tensors):
        return None, batches
    sizes = {len(value) for value in tensors}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def shortened(value: Any) -> Any:
        return _moved(value[:2] if len(sizes) == 1 else value, device) if isinstance(value, Tensor) else value

    return tuple(map(shortened, inputs)), batches


def as_positional(model: nn.Module, example_inputs: Any) -> tuple[Any, ...] | None:
    """Return example inputs in the order of forward's parameters, those by keyword only at the end.

    They are a tensor, a tuple, a dict of keyword inputs or (args, kwargs). Parameters that keywords leave out have
    their defaults.

    Raises:
        InputError: they are something else, or ``model`` does not take them so.
    """
    match example_inputs:
        case None:
            return None
        case Tensor():
            return (example_inputs,)
        case Mapping():
            args, kwargs = (), dict(example_inputs)
        case (tuple() | list(), Mapping()):
            args, kwargs = tuple(example_inputs[0]), dict(example_inputs[1])
        case tuple() | list():
            return tuple(example_inputs)
        case _:
            raise InputError(
                "example_inputs must be a tensor, a tuple of positional inputs, a dict of keyword inputs or "
                f"(args, kwargs), got {type(example_inputs).__name__}{cure_of_batch(example_inputs)}"
            )
    signature = inspect.signature(model.forward)
    kwargs = _fitting(kwargs, signature)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"example_inputs do not fit forward{signature}: {error}") from error
    starred = next((one.name for one in signature.parameters.values() if one.kind is one.VAR_POSITIONAL), None)
    by_name = [name for name in bound.kwargs if name in signature.parameters]
    if starred is not None and by_name:
        raise InputError(
            f"forward takes {by_name[0]!r} by keyword only, behind *{starred}: a graph takes its inputs by position, "
            f"and cannot tell where *{starred} ends. Wrap the model in a module whose forward has named parameters"
        )
    last = max((index for index, name in enumerate(signature.parameters) if name in bound.arguments), default=-1)
    bound.apply_defaults()
    return (*bound.args, *(bound.kwargs[name] for name in _by_keyword_only(signature)))[: last + 1]


def _positional(model: nn.Module, batch: Any) -> tuple[Any, ...] | None:
    """Return a batch as positional inputs of ``model``; the parameters that a dict leaves out get their defaults."""
    kinds = (*_BY_POSITION, inspect.Parameter.KEYWORD_ONLY)
    parameters = [one for one in inspect.signature(model.forward).parameters.values() if one.kind in kinds]
    required = sum(one.default is one.empty for one in parameters)
    if isinstance(batch, Mapping):
        names = [one.name for one in parameters]
        optional = {one.name for one in parameters if one.default is not one.empty}
        batch = _taken(batch, names, without=LABELS & optional)
        if not all(isinstance(value, Tensor) for value in batch.values()):
            return None
        count = max((names.index(name) + 1 for name in batch), default=0)
        values = tuple(batch.get(one.name, one.default) for one in parameters[:count])
        return None if any(value is inspect.Parameter.empty for value in values) else values
    inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch) if isinstance(batch, tuple | list) else ()
    if required == 1 and len(inputs) == 2:
        inputs = inputs[:1]  # (input, label)
    if not all(map(_is_input, inputs)) or len(inputs) < required:
        return None
    return inputs


def _fitting(kwargs: dict[str, Any], signature: inspect.Signature) -> dict[str, Any]:
    """Return ``kwargs`` without what forward swallows as ``**kwargs``, and labels that it does not take."""
    names = _keywords(signature)
    if any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        return _taken(kwargs, names)
    return {key: value for key, value in kwargs.items() if key in names or key not in LABELS}


def _by_keyword_only(signature: inspect.Signature) -> list[str]:
    return [one.name for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY]


def _keywords(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [one.name for one in signature.parameters.values() if one.kind in kinds]


def _taken(batch: Mapping[str, Any], names: Sequence[str], without: Collection[str] = ()) -> dict[str, Any]:
    """Return what of a batch goes into a model: loaders and tokenizers put more into theirs.

    Args:
        batch: of keyword inputs.
        names: parameters of forward.
        without: names that are left out, and may well be there.

    Raises:
        InputError: none of it goes in, or a key that is left out looks like a misspelt parameter.
    """
    left = [key for key in batch if key not in names]
    for key in set(left) - LABELS:
        close = difflib.get_close_matches(str(key), [name for name in names if name not in batch], n=1, cutoff=0.85)
        if close:
            raise InputError(f"the model takes no {key!r}; did you mean {close[0]!r}?")
    if batch and len(left) == len(batch):
        raise InputError(
            f"the model's inputs are {', '.join(names)}, and the batch has {', '.join(map(repr, batch))}: rename its "
            "keys, or make tuples of it"
        )
    if left:
        logger.info("keys of the batch that the model does not take: %s", ", ".join(map(str, left)))
    return {key: value for key, value in batch.items() if key not in left and key not in without}


def _is_input(value: Any) -> bool:
    """Return whether ``value`` is a tensor, or a list of them such as a detector takes."""
    is_list = isinstance(value, list) and bool(value)
    return isinstance(value, Tensor) or (is_list and all(isinstance(item, Tensor) for item in value))


def describe(value: Any) -> str:
    """Return types and shapes in words."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(describe(item) for item in value) or 'nothing'}"
    if isinstance(value, Mapping):
        return f"dict of {', '.join(f'{name}: {describe(item)}' for name, item in value.items()) or 'nothing'}"
    return type(value).__name__


def _inputs(gm: GraphModule) -> tuple[list[str], int]:
    """Return the input names, and how many of them a batch must hold."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    # A default of None is burned in unless the example inputs had a tensor there: then the graph reads it.
    required = [node for node in placeholders if not node.args or (node.args[0] is None and node.users)]
    return [str(node.target) for node in placeholders], len(required)


def _given_inputs(gm: GraphModule) -> list[str]:
    """Return the inputs that are tensors, or hold some: not the parameters that are burned in."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    return [str(node.target) for node in placeholders if node.users]


def _on_device_of(gm: GraphModule, batch: Any) -> Any:
    first: Tensor | None = next(itertools.chain(gm.parameters(), gm.buffers()), None)
    device = torch.device("cpu") if first is None else first.device
    return pytree.tree_map_only(Tensor, lambda tensor: _moved(tensor, device), batch)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.is_meta and device.type != "meta":
        raise InputError(
            f"a batch holds a tensor of {tuple(tensor.shape)} on the meta device, which keeps no values: give tensors "
            "that have values"
        )
    return tensor.to(device, non_blocking=True)
