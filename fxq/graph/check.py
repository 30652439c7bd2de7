"""The rules of each stage: after every pass none may be newly broken, after the stage none at all.

TRACED      FX's own lint; no node without a reader, unless it has a side effect.
NORMALIZED  no identity, no dropout (unless the model will be trained).
PLANNED     plans point to inputs that exist.
PREPARED    every planned reading passes through a quantizer, none through two in a row; a module with a tensor that is
            planned inside of it has a quantizer there; these quantizers are on.
CALIBRATED  as PREPARED, but a quantizer may be off: data flows, and ranges and weights change.
FROZEN      every enabled quantizer has a range, or is dynamic.
LOWERED     no quantizer is left; a quantize is read by dequantizes only, a dequantize reads a quantize or a constant;
            integer weights, and their steps, are stored tensors.
INTEGER     what a quantize makes is read by operators on integers, by what moves data, and by dequantizes alone.
"""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxq.errors import GraphError
from fxq.graph.dead_nodes import has_effect
from fxq.graph.kinds import kind, module_of, produces_tensor, produces_values
from fxq.graph.match import input_edges, is_quantizer
from fxq.graph.memory import writes_in_place
from fxq.graph.modules import module_at
from fxq.graph.plan import inserted_for, planned_inputs, plans_by_module
from fxq.kinds import class_kind
from fxq.module_tree import all_modules, named_modules
from fxq.nn import Quantized
from fxq.nn.quantized import quantizer_name
from fxq.nn.tensor_quantizer import TensorQuantizer
from fxq.quant import DEQUANTIZE, LOWERED_OPS, QUANTIZE
from fxq.stage import Stage

_MOST_SHOWN = 5
_WITH_ARTICLE = {"identity": "an identity", "dropout": "a dropout"}


def check_graph(gm: GraphModule, stage: Stage, qat: bool = False) -> None:
    """Raise a GraphError that lists the rules of ``stage`` that the graph breaks."""
    problems = find_problems(gm, stage, qat)
    if problems:
        raise GraphError(f"the graph breaks the rules of stage '{stage}': {summary(problems)}")


def find_problems(gm: GraphModule, stage: Stage, qat: bool = False, is_sound: bool = False) -> list[str]:
    """Return the rules of ``stage``, and of the stages before it that still hold, that the graph breaks.

    ``is_sound``: its structure was found to be sound, and nobody has touched it since.
    """
    problems = [] if is_sound else list(_structure(gm))
    if problems:
        return problems  # the other rules take a sound structure for granted
    rules: dict[Stage, Callable[[], Iterator[str]]] = {
        Stage.NORMALIZED: lambda: _normalized(gm, qat),
        Stage.PLANNED: lambda: _planned(gm),
        Stage.PREPARED: lambda: _prepared(gm, must_be_on=True),
        Stage.CALIBRATED: lambda: _prepared(gm, must_be_on=False),
        Stage.FROZEN: lambda: _frozen(gm),
        Stage.LOWERED: lambda: _lowered(gm),
        Stage.INTEGER: lambda: _integer(gm),
    }
    applying = [stage] if stage in rules else []
    if Stage.PLANNED <= stage <= Stage.FROZEN:
        applying.insert(0, Stage.NORMALIZED)
    return [problem for rule in applying for problem in rules[rule]()]


def summary(problems: list[str]) -> str:
    """Return the first few problems in one line, and how many more there are."""
    more = f" (and {len(problems) - _MOST_SHOWN} more)" if len(problems) > _MOST_SHOWN else ""
    return f"{'; '.join(problems[:_MOST_SHOWN])}{more}"


def _structure(gm: GraphModule) -> Iterator[str]:
    try:
        gm.graph.lint()
    except (RuntimeError, ValueError) as error:
        yield str(error).partition("\n")[0]  # behind it comes the whole graph
        return
    for node in gm.graph.nodes:
        if not (node.users or has_effect(node) or writes_in_place(node)):
            yield f"node {node.name!r} is dead: erase it or give it a reader"


def _normalized(gm: GraphModule, qat: bool) -> Iterator[str]:
    unwanted = {"identity"} if qat else {"identity", "dropout"}
    for node in gm.graph.nodes:
        # The class first: what its instance adds can only make it none of them, and takes longer to ask for.
        if node.op == "call_module" and class_kind(type(module_of(node))) in unwanted and kind(node) in unwanted:
            yield f"node {node.name!r} is {_WITH_ARTICLE[kind(node)]}, which does nothing here: bypass it"


def _planned(gm: GraphModule, has_quantizer: Callable[[Node], bool] = lambda _: True) -> Iterator[str]:
    """Yield the plans on inputs that there are not, or on producers that are no such quantizers as they should be."""
    for node in gm.graph.nodes:
        planned = planned_inputs(node)
        edges = input_edges(node) if planned else []
        for position in planned:
            if position >= len(edges):
                yield f"node {node.name!r} has a plan for input {position} and only {len(edges)} inputs"
            elif not has_quantizer(edges[position].producer):
                yield f"input {position} of node {node.name!r} is planned and has no quantizer that is on"


def _prepared(gm: GraphModule, must_be_on: bool) -> Iterator[str]:
    yield from _planned(gm, lambda producer: _quantizes(producer, must_be_on))
    for node in gm.graph.nodes:
        if is_quantizer(node) and is_quantizer(node.all_input_nodes[0]):
            yield f"quantizer {node.target!r} reads the quantizer {node.all_input_nodes[0].target!r}"
    for path, plans in plans_by_module(gm).items():
        module = module_at(gm, path)
        for slot in plans:
            quantizer = module.quantizer_of(slot) if isinstance(module, Quantized) else None
            if quantizer is None or (must_be_on and not quantizer.is_enabled):
                yield f"{slot!r} of {path!r} is planned and has no quantizer that is on"


def _quantizes(node: Node, must_be_on: bool) -> bool:
    quantizer = module_of(node) if is_quantizer(node) else None
    return isinstance(quantizer, TensorQuantizer) and (quantizer.is_enabled or not must_be_on)


def idle_quantizers(gm: GraphModule) -> dict[str, TensorQuantizer]:
    """Return the quantizers that are off and that no plan will switch on, by path; one that may only clip is off."""
    if all(_is_on(one) for one in all_modules(gm) if isinstance(one, TensorQuantizer)):
        return {}  # asked after each pass, of which most see none
    off = {
        path: module
        for path, module in named_modules(gm, remove_duplicate=False)
        if isinstance(module, TensorQuantizer) and not _is_on(module)
    }
    planned = {str(node.target) for node in gm.graph.nodes if is_quantizer(node) and inserted_for(node)}
    for path, plans in plans_by_module(gm).items():
        planned |= {f"{path}.{quantizer_name(slot)}" for slot in plans}
    return {path: module for path, module in off.items() if path not in planned}


def _is_on(quantizer: TensorQuantizer) -> bool:
    return quantizer.is_enabled and quantizer.is_quant_enabled


def _frozen(gm: GraphModule) -> Iterator[str]:
    yield from _prepared(gm, must_be_on=False)  # the user may have switched some off since
    for path, module in named_modules(gm):
        if not isinstance(module, TensorQuantizer) or not module.is_enabled:
            continue
        if not module.has_range and not module.descriptor.is_dynamic:
            yield f"quantizer {path!r} has no range"


def _lowered(gm: GraphModule) -> Iterator[str]:
    for node in gm.graph.nodes:
        if node.op == "call_module" and any(isinstance(one, TensorQuantizer) for one in all_modules(module_of(node))):
            for path, module in module_of(node).named_modules(prefix=str(node.target)):
                if isinstance(module, TensorQuantizer) and module.is_enabled:
                    yield f"quantizer {path!r} was not lowered"
        if node.target is QUANTIZE and any(reader.target is not DEQUANTIZE for reader in node.users):
            yield f"quantize {node.name!r} is read by something else than a dequantize"
        if node.target is DEQUANTIZE:
            source = node.all_input_nodes[0]
            if source.target is not QUANTIZE and source.op != "get_attr" and produces_tensor(source):
                yield f"dequantize {node.name!r} reads {source.name!r}, neither a quantize nor a stored tensor"
        row = LOWERED_OPS.get(node.target)
        for position in row.stored if row else ():
            weight = node.args[position]
            if not isinstance(weight, Node) or weight.op != "get_attr":
                yield f"argument {position} of {node.name!r} is a weight, and {weight} is no stored tensor"


def _integer(gm: GraphModule) -> Iterator[str]:
    codes: set[Node] = set()
    values: set[Node] = set()  # computed from what was dequantized
    for node in gm.graph.nodes:
        row = LOWERED_OPS.get(node.target)
        found = None if row is None else row.kind
        if any(read in values for read in node.all_input_nodes):
            if found in ("quantize", "integer"):
                yield f"{found} {node.name!r} reads floats that were integers before"
            if produces_values(node):
                values.add(node)
        elif found in ("quantize", "integer"):
            codes.add(node)
        elif any(read in codes for read in node.all_input_nodes) and produces_values(node):
            (values if found == "dequantize" else codes).add(node)
            if node in codes and _is_float(node):
                yield f"node {node.name!r} makes floats of integers, and is no dequantize"


def _is_float(node: Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return node.op != "output" and any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)
