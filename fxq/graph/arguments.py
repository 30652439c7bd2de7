"""What a graph took for given about its inputs, checked at each call: a flag, None, the length of a list.

Tracing decides Python with the values of the example inputs. A call with another value would be answered by the graph
of those, so the generated code of the graph begins with one line for each of them. The lines stand in the code, not in
the graph: passes and exporters do not see them, and they follow it through copies, pickles and torch.compile.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, Proxy
from torch.fx.graph import CodeGen

from fxq.errors import InputError

_LITERALS = (int, float, bool, str, type(None))
_TORCH_LITERALS = (torch.dtype, torch.layout, torch.memory_format)
_ASPECTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "": lambda value: value,
        "len": len,
        "keys": lambda value: sorted(value, key=repr),
        "is None": lambda value: value is None,
    }
)


@dataclass(frozen=True)
class Fact:
    """What the graph takes for given about a parameter of forward.

    Args:
        name: the parameter.
        answer: what was asked, while tracing.
        keys: of the item that was asked for, from the outside in; none for the parameter itself.
        aspect: "" for the value itself, "len", "keys", or "is None".
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


def check_calls(graph: Graph, facts: Sequence[Fact]) -> None:
    """Let calls of ``graph`` be refused where a fact does not hold; a burned-in value is its parameter's default."""
    answers = {fact.name: fact.answer for fact in facts if not (fact.keys or fact.aspect)}
    for node in graph.nodes:
        if node.op == "placeholder" and node.args and is_literal(answers.get(str(node.target), ...)):
            node.args = (answers[str(node.target)],)
    if facts:
        parameters = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
        graph.set_codegen(_CheckedCode(parameters, tuple(facts)))


def check_argument(given: Any, name: str, keys: Sequence[Any], aspect: str, answer: Any) -> None:
    """Refuse a call that differs from what the graph was traced with: see :class:`Fact`.

    Raises:
        InputError: it does.
    """
    if isinstance(given, Proxy):  # a pickled graph is traced again where it is loaded
        given.tracer.create_proxy("call_function", check_argument, (given, name, keys, aspect, answer), {})
        return
    answer = answer.value if isinstance(answer, _Answer) else answer
    try:
        for key in keys:
            given = given[key]
        found = _ASPECTS[aspect](given)
    except (TypeError, LookupError):
        found = given
    if not _is_same(found, answer):
        item = "".join([name, *(f"[{key!r}]" for key in keys)])
        called = f"with {aspect}({item}) = " if aspect in ("len", "keys") else f"with {item} = "
        traced, now = (f"{called}{_text(value)}" for value in (answer, found))
        if aspect == "is None":
            traced, now = f"with a value for {item}", f"with {item} = None"
        raise InputError(
            f"the model was traced {traced}, and is called {now}: the graph has no other branch. Call it as it was "
            "traced, or prepare the model again with this argument among the example_inputs"
        )


class _Answer:
    """Holds an answer that may be anything: torch.fx hashes what the code of a graph names."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _CheckedCode(CodeGen):
    """Generates the code of forward, with the checks as its first lines."""

    def __init__(self, parameters: tuple[str, ...], facts: tuple[Fact, ...]) -> None:
        super().__init__()
        self.parameters = parameters
        self.facts = facts

    def process_inputs(self, *args: Any) -> Any:  # type: ignore[override]  # torch 2.11 has another signature
        """Check what an interpreter gets, which runs nodes and no code: that of torch.export is one."""
        given = dict(zip(self.parameters, args, strict=False))
        starred = next((name for name in self.parameters if name.startswith("*")), None)
        if starred is not None:
            given[starred.lstrip("*")] = args[self.parameters.index(starred) :]
        for fact in self.facts:
            if fact.name in given:
                check_argument(given[fact.name], fact.name, fact.keys, fact.aspect, fact.answer)
        return super().process_inputs(*args)

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        """Return the ``def`` line and the checks."""
        lines = [
            f"    {check_argument.__name__}({fact.name}, {fact.name!r}, {fact.keys!r}, {fact.aspect!r}, "
            f"{repr(fact.answer) if is_literal(fact.answer) else _name_of(index)})"
            for index, fact in enumerate(self.facts)
        ]
        return "\n".join([super().gen_fn_def(*args, **kwargs), *lines])

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Return what the checks name: themselves, and the answers that no code spells."""
        named = [
            (_name_of(index), _Answer(fact.answer))
            for index, fact in enumerate(self.facts)
            if not is_literal(fact.answer)
        ]
        return [*super().additional_globals(), (check_argument.__name__, check_argument), *named]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_CheckedCode":
        return self  # nobody changes it, and a copied answer need not be equal


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


def _is_same(found: Any, answer: Any) -> bool:
    if found is answer:
        return True
    if isinstance(found, Tensor) or isinstance(found, bool) != isinstance(answer, bool):
        return False
    try:
        return bool(found == answer)
    except Exception:  # the user's own objects: they may refuse to be compared in any way
        return False


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."
