"""Run a model on inputs so that two runs can be compared: same inputs, same state, same random numbers."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.graph.kinds import MOVES_DATA, kind, module_of
from fxq.graph.match import is_quantizer
from fxq.graph.snapshot import evaluated, restored_state
from fxq.graph.stored import stored_input
from fxq.module_tree import all_modules, named_modules
from fxq.nn import Quantized, TensorQuantizer
from fxq.process_lock import PROCESS_LOCK
from fxq.quant import DEQUANTIZE, QUANTIZE

Leaf = TypeVar("Leaf")
Named = list[tuple[str, Tensor]]
_SEED = 0
_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_SHARES = frozenset({"sigmoid", "hardsigmoid", "softmax"})


def named_outputs(model: nn.Module, inputs: tuple[Any, ...]) -> Named:
    """Return the tensors that ``model`` returns for ``inputs``, by the names they have in an exported file.

    It runs as in :func:`running_alike`, on copies of the inputs.
    """
    with running_alike(model):
        return _called(model, inputs)


class Run(NamedTuple):
    """One call of a model.

    Args:
        outputs: what it returned.
        has_drawn: random numbers were drawn for them.
        changed: the attributes that it left changed, by path.
        buffers: the buffers, of which a graph has its own, and writes to them too.
    """

    outputs: Named
    has_drawn: bool
    changed: tuple[str, ...]
    buffers: tuple[str, ...]


class Seen(NamedTuple):
    """Positional inputs, and what a model made of them."""

    inputs: tuple[Any, ...]
    outputs: Named

    def is_of(self, inputs: tuple[Any, ...]) -> bool:
        """Return whether ``inputs`` are the same, so that the model would return the same."""
        leaves, structure = pytree.tree_flatten(inputs)
        known, known_structure = pytree.tree_flatten(self.inputs)
        return structure == known_structure and all(map(_are_same, leaves, known))


def run_once(model: nn.Module, inputs: tuple[Any, ...], seed: int = _SEED, times: int = 1) -> Run:
    """Call ``model`` as :func:`named_outputs` does, with random numbers of ``seed``; ``times``: the last counts."""
    with running_alike(model, seed) as generators:
        before = [generator.get_state() for generator in generators]
        attributes, buffers = _attributes(model), _buffers(model)
        for _ in range(times):
            outputs = _called(model, inputs)
        has_drawn = any(
            not torch.equal(generator.get_state(), state) for generator, state in zip(generators, before, strict=True)
        )
        changed, written = _changed(attributes, _attributes(model)), _changed(buffers, _buffers(model))
        return Run(outputs, has_drawn, tuple(changed), tuple(written))


def _called(model: nn.Module, inputs: tuple[Any, ...]) -> Named:
    # Not model(...): where it fails, a graph module's own call prints a traceback of generated code.
    args, kwargs = Inputs(copies(inputs), {}).fitting(model)
    result = nn.Module.__call__(model, *args, **kwargs)
    return [(name, value.detach().clone()) for name, value in named_leaves(result, "output", Tensor)]


@contextlib.contextmanager
def running_alike(model: nn.Module, seed: int = _SEED) -> Iterator[list[torch.Generator]]:
    """Run ``model`` in eval mode, without gradients, and always with the same random numbers, those of ``seed``.

    What it writes into its own attributes and buffers is undone. Yields what makes the random numbers.
    """
    parts = all_modules(model)
    with (
        PROCESS_LOCK,
        evaluated(model, parts),
        _as_before(model, parts),
        _seeded(parts, seed) as generators,
        torch.no_grad(),
    ):
        yield generators


def copies(inputs: Any) -> Any:
    """Return ``inputs`` with each tensor copied; one that is given twice stays one."""
    copied: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copied:
            copied[id(tensor)] = tensor.detach().clone()
        return copied[id(tensor)]

    return pytree.tree_map_only(Tensor, copy, inputs)


def named_leaves(value: Any, name: str, leaf: type[Leaf]) -> list[tuple[str, Leaf]]:
    """Return what is a ``leaf`` in nested lists, tuples and dicts, in order, each with its name.

    A leaf of a dict is called by its key; the others ``name``, ``name_1``, ...
    """
    if isinstance(value, leaf):
        return [(name, value)]
    if isinstance(value, Mapping):
        prefix = "" if name == "output" else f"{name}_"
        return [found for key, item in value.items() for found in named_leaves(item, f"{prefix}{key}", leaf)]
    if isinstance(value, list | tuple):
        return [
            found
            for index, item in enumerate(value)
            for found in named_leaves(item, name if index == 0 else f"{name}_{index}", leaf)
        ]
    return []


def output_steps(gm: GraphModule, outputs: Named) -> list[float]:
    """Return what one LSB of each output is: the step of the quantizer it comes from, else max|output| / hi."""
    returned = named_leaves(gm.graph.output_node().args[0], "output", Node)
    own = {name: _quantizer_step(node) for name, node in returned}
    hi = _codes_above_zero(gm)
    return [own.get(name) or largest_finite(value) / hi or 1.0 for name, value in outputs]


def are_shares(gm: GraphModule) -> tuple[bool, ...]:
    """Return of each tensor that ``gm`` returns whether it is a sigmoid or softmax, moved at most: between 0 and 1."""
    return tuple(_is_share(node) for _, node in named_leaves(gm.graph.output_node().args[0], "output", Node))


def _is_share(node: Node) -> bool:
    found = kind(node)
    if found in MOVES_DATA or is_quantizer(node):
        return _is_share(node.all_input_nodes[0])
    return all(map(_is_share, node.all_input_nodes)) if found == "cat" else found in _SHARES


def largest_finite(tensor: Tensor) -> float:
    """Return the largest finite magnitude, 0 where there is none."""
    return float(torch.nan_to_num(tensor.double(), 0.0, 0.0, 0.0).abs().max()) if tensor.numel() else 0.0


def _are_same(first: Any, second: Any) -> bool:
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        is_atom = type(first) is type(second) and isinstance(first, bool | int | float | str)
        return first is second or (is_atom and first == second)
    is_like = (first.dtype, first.device, first.layout) == (second.dtype, second.device, second.layout)
    return is_like and first.layout is torch.strided and torch.equal(first, second)


def _attributes(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Return what the attributes of each module, by path, hold: which objects, and how often these were written to."""
    return [
        (path, {name: _identity(value) for name, value in vars(module).items() if name not in _OF_ALL_MODULES})
        for path, module in named_modules(model)
    ]


def _buffers(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Return the same of their buffers."""
    return [
        (path, {name: _identity(value) for name, value in module._buffers.items()})
        for path, module in named_modules(model)
    ]


def _changed(before: list[tuple[str, dict[str, Any]]], now: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    known = dict(before)
    for path, held in now:
        had = known.get(path, {})
        if held != had:
            yield from (f"{path}.{name}".lstrip(".") for name in held if had.get(name) != held[name])


def _identity(value: Any) -> Any:
    if type(value) in (list, dict, OrderedDict):
        return [id(item) for item in (value.values() if isinstance(value, dict) else value)]
    return id(value), _version(value) if isinstance(value, Tensor) else None


@contextlib.contextmanager
def _as_before(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Undo what running ``model``, which consists of ``parts``, writes into its attributes and buffers."""
    with torch.no_grad():
        registered = {id(one): one for module in parts for one in module._buffers.values() if one is not None}
        buffers = [(one, _version(one), one.clone()) for one in registered.values()]
    with restored_state(model, parts):
        yield
    for buffer, version, content in buffers:
        if version is None or buffer._version != version:
            with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                buffer.copy_(content)


def _version(tensor: Tensor) -> int | None:
    """Return how often ``tensor`` was written to, None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def _seeded(parts: Sequence[nn.Module], seed: int) -> Iterator[list[torch.Generator]]:
    tensors = (one for module in parts for own in (module._parameters, module._buffers) for one in own.values())
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor is not None and tensor.is_cuda})
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed, which would seed devices that the model is not on, and leave them so.
        generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)]
        for generator in generators:
            generator.manual_seed(seed)
        yield generators


def _quantizer_step(node: Node) -> float | None:
    """Return the step of the quantizer that ``node`` is, None where it is none, or has one for each channel."""
    if is_quantizer(node):
        quantizer = module_of(node)
        if not isinstance(quantizer, TensorQuantizer) or not _rounds(quantizer):
            return None
        step = quantizer.qparams().scale
    elif node.target is DEQUANTIZE and node.args[0].target is QUANTIZE:  # type: ignore[union-attr]
        step = node.graph.owning_module.get_buffer(str(node.args[1].target))  # type: ignore[union-attr]
    else:
        return None
    return float(step) if step.numel() == 1 else None


def _codes_above_zero(gm: GraphModule) -> int:
    """Return hi of the coarsest activation quantizer: half its codes, 127 for int8 and uint8, and without any."""
    spans = [int(node.args[5]) - int(node.args[4]) for node in gm.graph.nodes if node.target is QUANTIZE]
    spans += [bounds[1] - bounds[0] for bounds in _activation_bounds(gm)]
    return min(spans, default=255) // 2


def _activation_bounds(gm: GraphModule) -> Iterator[tuple[int, int]]:
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        module = module_of(node)
        found: list[Any] = []
        if isinstance(module, TensorQuantizer) and stored_input(node) is None:
            found = [module]
        elif isinstance(module, Quantized):
            found = [quantizer for _, quantizer in module.activations()]
        for quantizer in found:
            if quantizer.is_enabled and quantizer.is_quant_enabled:
                yield quantizer.descriptor.bounds


def _rounds(quantizer: TensorQuantizer) -> bool:
    is_on = quantizer.is_enabled and quantizer.is_quant_enabled
    return is_on and quantizer.has_range and not quantizer.is_dynamic
