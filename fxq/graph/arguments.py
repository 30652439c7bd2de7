"""What a graph took for given about its inputs, checked at each call: a flag, None, the length of a list.

Tracing decides Python with the values of the example inputs. A call with another value would be answered by the graph
of those, so the generated code of the graph begins with one line for each of them. The lines stand in the code, not in
the graph: passes and exporters do not see them, and they follow it through copies, pickles and torch.compile.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, Proxy
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from fxq.errors import InputError, TraceError

_LITERALS = (int, float, bool, str, type(None))
_TORCH_LITERALS = (torch.dtype, torch.layout, torch.memory_format)
_ASPECTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "": lambda value: value,
        "len": len,
        "keys": lambda value: sorted(value, key=repr),
        "is None": lambda value: value is None,
        "type": lambda value: type(value).__name__,
    }
)


@dataclass(frozen=True)
class Fact:
    """What the graph takes for given about a parameter of forward.

    Args:
        name: the parameter.
        answer: what was asked, while tracing.
        keys: of the item that was asked for, from the outside in; none for the parameter itself.
        aspect: "" for the value itself, "len", "keys", "type", or "is None".
    """

    name: str
    answer: Any
    keys: tuple[Any, ...] = ()
    aspect: str = ""


def facts_about(node: Node) -> list[Fact]:
    """Return what a graph takes for given that decides by the number, text or form that ``node`` computes."""
    found, seen = [], {node}
    for current in (nodes := [node]):  # grows while it is walked
        value = current.meta.get("val")
        if isinstance(value, Tensor):
            continue  # decided by a shape, which example inputs are there for
        place = _place_of(current)
        if place is not None:
            found.append(Fact(place[0], *_asked(value, place[1])))
            continue
        nodes += [source for source in current.all_input_nodes if source not in seen]
        seen.update(nodes)
    return found


def type_fact(node: Node) -> Fact | None:
    """Return of which type the list, tuple or mapping is that ``node`` is in the arguments; None for anything else."""
    place, value = _place_of(node), node.meta.get("val")
    if place is None or not isinstance(value, tuple | list | Mapping):
        return None
    return Fact(place[0], type(value).__name__, place[1], "type")


def facts_of(name: str, value: Any, keys: tuple[Any, ...] = ()) -> list[Fact]:
    """Return what a graph takes for given that was traced with ``value``: all of it but the tensors."""
    if isinstance(value, Tensor):
        return []
    answer, _, aspect = _asked(value, keys)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    inner = [fact for key, item in items for fact in facts_of(name, item, (*keys, key))]
    return [Fact(name, answer, keys, aspect), *inner]


def check_calls(
    graph: Graph, facts: Sequence[Fact], guards: Sequence[str] = (), result: pytree.TreeSpec | None = None
) -> None:
    """Let calls of ``graph`` be refused where a fact does not hold; a burned-in value is its parameter's default.

    Args:
        graph: modified.
        facts: about arguments that are no tensors.
        guards: what holds about the sizes of tensors, as torch.export writes it: ``L['x'].size()[1] == 9``.
        result: makes what a call returns from the leaves of what the graph returns; None: nothing is to be made.
    """
    facts = [*facts, *_required_behind_optional(graph)]
    answers = {fact.name: fact.answer for fact in facts if not (fact.keys or fact.aspect)}
    for node in graph.find_nodes(op="placeholder"):
        if node.args and str(node.target) in answers:
            node.args = (answers[str(node.target)],)
        if node.args and pytree.tree_any(lambda leaf: isinstance(leaf, Tensor), node.args[0]):
            raise TraceError(
                f"the default of forward's parameter {node.target!r} is a tensor, which the signature of a graph "
                "cannot hold: make it a buffer of the model, or None by default"
            )
    if facts or guards or result is not None:
        parameters = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
        defaults = {str(node.target): node.args[0] for node in graph.find_nodes(op="placeholder") if node.args}
        unspelt = {name: value for name, value in defaults.items() if not _can_be_spelt(value)}
        graph.set_codegen(_CheckedCode(parameters, tuple(facts), tuple(guards), result, unspelt))


def _required_behind_optional(graph: Graph) -> list[Fact]:
    """Let inputs by keyword only stand behind optional ones: in code that has no ``*`` they need a default, None."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and not str(node.target).startswith("*")]
    optional = next((index for index, node in enumerate(placeholders) if node.args), len(placeholders))
    required = [node for node in placeholders[optional:] if not node.args]
    for node in required:
        node.args = (None,)
    return [Fact(str(node.target), False, (), "is None") for node in required]


def check_argument(given: Any, name: str, keys: Sequence[Any], aspect: str, answer: Any) -> None:
    """Refuse a call that differs from what the graph was traced with: see :class:`Fact`.

    Raises:
        InputError: it does.
    """
    if isinstance(given, Proxy):  # a pickled graph is traced again where it is loaded
        given.tracer.create_proxy("call_function", check_argument, (given, name, keys, aspect, answer), {})
        return
    given, answer = (value.value if isinstance(value, _Held) else value for value in (given, answer))
    try:
        for key in keys:
            given = given[key]
        found = _ASPECTS[aspect](given)
    except (TypeError, LookupError):
        found = given
    if not _is_same(found, answer):
        item = "".join([name, *(f"[{key!r}]" for key in keys)])
        called = f"with {aspect}({item}) = " if aspect in ("len", "keys", "type") else f"with {item} = "
        traced, now = (f"{called}{_text(value)}" for value in (answer, found))
        if aspect == "is None":
            traced, now = f"with a value for {item}", f"with {item} = None"
        raise InputError(
            f"the model was traced {traced}, and is called {now}: the graph has no other branch. Call it as it was "
            "traced, or prepare the model again with this argument among the example_inputs"
        )


def check_sizes(given: Mapping[str, Any], guards: Sequence[str]) -> None:
    """Refuse a call with sizes for which the graph was not traced.

    Raises:
        InputError: a guard does not hold for the arguments by parameter.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(dict(given)) if isinstance(leaf, Tensor)]
    is_traced = any(isinstance(value, Proxy) for value in given.values())
    if is_traced or not all(isinstance(size, int) for tensor in tensors for size in tensor.shape):
        return  # which sizes there will be is not known yet
    for guard in guards:
        if holds(guard, given) is False:
            shapes = ", ".join(f"{name}: {_text(value)}" for name, value in given.items() if isinstance(value, Tensor))
            raise InputError(
                f"the model was traced for sizes with {in_words(guard)}, and is called with {shapes}: its Python "
                "decides by them. Prepare the model again with example_inputs of these sizes"
            )


def holds(guard: str, given: Mapping[str, Any]) -> bool | None:
    """Return whether a guard holds for arguments by parameter; None where it cannot be asked."""
    try:
        return bool(eval(guard, {"math": math, "torch": torch}, {"L": given}))  # torch.export wrote it
    except (LookupError, AttributeError, TypeError, NameError):
        return None  # there is no such tensor: a fact says so, or forward itself


def in_words(guard: str) -> str:
    """Return a guard as a person would write it: ``x.shape[1] == 9``."""
    named = re.sub(r"L\['(\w+)'\]", r"\1", guard)
    return re.sub(r"\.size\(\)\[", ".shape[", named)


def size_conditions(graph: Graph) -> tuple[str, ...]:
    """Return for which sizes a graph was traced by torch.export, in words: ``x.shape[1] > 5``.

    Without inequalities of the kind that torch needs for its own reasoning.
    """
    guards = graph._codegen.guards if isinstance(graph._codegen, _CheckedCode) else ()
    return tuple(dict.fromkeys(in_words(guard) for guard in guards if "!=" not in guard and "sym_" not in guard))


class _Held:
    """Holds an answer or a default, which may be anything: torch.fx hashes what the code of a graph names."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _CheckedCode(CodeGen):
    """Generates the code of forward, with the checks as its first lines."""

    def __init__(
        self,
        parameters: tuple[str, ...],
        facts: tuple[Fact, ...],
        guards: tuple[str, ...] = (),
        result: pytree.TreeSpec | None = None,
        unspelt: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.parameters = parameters
        self.facts = facts
        self.guards = guards
        self.result = result
        self.unspelt = unspelt  # defaults by parameter

    def process_inputs(self, *args: Any) -> Any:  # type: ignore[override]  # torch 2.11 has another signature
        """Check what an interpreter gets, which runs nodes and no code: that of torch.export is one."""
        given = dict(zip(self.parameters, args, strict=False))
        starred = next((name for name in self.parameters if name.startswith("*")), None)
        if starred is not None:
            given[starred.lstrip("*")] = args[self.parameters.index(starred) :]
        for fact in self.facts:
            if fact.name in given:
                check_argument(given[fact.name], fact.name, fact.keys, fact.aspect, fact.answer)
        check_sizes(given, self.guards)
        return super().process_inputs(*args)

    def process_outputs(self, outputs: Any) -> Any:
        """Return what the model returns."""
        return outputs if self.result is None else as_result(outputs, self.result)

    def gen_fn_def(self, free_vars: list[str], *args: Any, **kwargs: Any) -> str:
        """Return the ``def`` line and the checks."""
        names = [re.split("[:=]", one)[0].strip() for one in free_vars]
        free_vars = [
            f"{name} = {_default_of(name)}" if name in self.unspelt else one
            for name, one in zip(names, free_vars, strict=True)
        ]
        lines = [
            f"    {check_argument.__name__}({fact.name}, {fact.name!r}, {fact.keys!r}, {fact.aspect!r}, "
            f"{repr(fact.answer) if is_literal(fact.answer) else _name_of(index)})"
            for index, fact in enumerate(self.facts)
        ]
        if self.guards:
            given = ", ".join(f"{name!r}: {name}" for name in (one.lstrip("*") for one in self.parameters))
            lines.append(f"    {check_sizes.__name__}({{{given}}}, _fxq_guards)")
        return "\n".join([super().gen_fn_def(free_vars, *args, **kwargs), *lines])

    def generate_output(self, output_args: Any, *args: Any, **kwargs: Any) -> str:
        """Return the ``return`` line."""
        line = super().generate_output(output_args, *args, **kwargs)
        if self.result is None:
            return line
        return f"return {as_result.__name__}({line.strip().removeprefix('return ')}, _fxq_result)"

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return what the checks name: themselves, and the answers that no code spells."""
        named: list[tuple[str, Any]] = [
            (_name_of(index), _Held(fact.answer))
            for index, fact in enumerate(self.facts)
            if not is_literal(fact.answer)
        ]
        named += [(_default_of(name), _Held(value)) for name, value in self.unspelt.items()]
        if self.guards:
            named += [(check_sizes.__name__, check_sizes), ("_fxq_guards", self.guards)]
        if self.result is not None:
            named += [(as_result.__name__, as_result), ("_fxq_result", _Held(self.result))]
        return [*super().additional_globals(), (check_argument.__name__, check_argument), *named]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_CheckedCode":
        return self  # nobody changes it, and a copied answer need not be equal


def as_result(value: Any, structure: Any) -> Any:
    """Return the leaves of ``value`` in the containers of a TreeSpec, such as a class of the model's own."""
    structure = structure.value if isinstance(structure, _Held) else structure
    return pytree.tree_unflatten(pytree.tree_leaves(value), structure)


def _default_of(name: str) -> str:
    return f"_fxq_default_{name}"


def _name_of(index: int) -> str:
    return f"_fxq_answer_{index}"


def _place_of(node: Node) -> tuple[str, tuple[Any, ...]] | None:
    """Return the parameter that ``node`` is, or is an item of, and the keys of the item; None if it is computed."""
    keys: list[Any] = []
    while node.target is operator.getitem and is_literal(node.args[1]) and not isinstance(node.args[1], Node):
        keys.insert(0, node.args[1])
        node = node.args[0]  # type: ignore[assignment]
    return (str(node.target).lstrip("*"), tuple(keys)) if node.op == "placeholder" else None


def _asked(value: Any, keys: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], str]:
    if isinstance(value, Mapping):
        return sorted(value, key=repr), keys, "keys"
    if isinstance(value, tuple | list):
        return len(value), keys, "len"
    return value, keys, ""


def is_literal(value: Any) -> bool:
    """Return whether code can spell ``value``."""
    if type(value) in (tuple, list):
        return all(map(is_literal, value))
    if type(value) is float:
        return value - value == 0  # finite
    return type(value) in (*_LITERALS, *_TORCH_LITERALS)


def _can_be_spelt(default: Any) -> bool:
    """Return whether torch.fx spells a default in code: floats that are not finite too."""
    return is_literal(default) or type(default) is float


def _is_same(found: Any, answer: Any) -> bool:
    if found is answer:
        return True
    if isinstance(found, Tensor) or isinstance(found, bool) != isinstance(answer, bool):
        return False
    if isinstance(found, float) and isinstance(answer, float) and math.isnan(found):
        return math.isnan(answer)
    try:
        equal = found == answer
        is_array = hasattr(equal, "all")
        return found.shape == answer.shape and bool(equal.all()) if is_array else bool(equal)
    except Exception:  # the user's own objects: they may refuse to be compared in any way
        return False


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."
