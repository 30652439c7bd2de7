"""Which function a frame is calling now, as far as its code tells."""

import dis
import functools
from types import BuiltinFunctionType, CodeType, FrameType
from typing import Any

# Of Python 3.11 and later ones; what is not among them counts as unknown.
_NAMES = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_QUESTIONS = frozenset({"isinstance", "__class__"})  # that Python code asks for types by
_UNKNOWN = object()


def is_in_torch(frame: FrameType) -> bool:
    """Return whether ``frame`` is calling a function of torch that is written in C++.

    There ``isinstance(x, torch.Tensor)`` must not be answered with yes for what is none: torch would read its memory.
    ``torch.pow(x, 3.0)`` does so, whose first form takes a number for x.
    """
    names = _called_names(frame.f_code, frame.f_lasti)
    if names is None:
        return False
    function = _named(names, frame)
    while isinstance(function, functools.partial):
        function = function.func
    if function is _UNKNOWN:  # a call of what another call returned, for example
        return _QUESTIONS.isdisjoint(frame.f_code.co_names)
    return isinstance(function, BuiltinFunctionType) and function.__module__ != "builtins"


@functools.lru_cache(maxsize=4096)
def asks_for_types(code: CodeType) -> bool:
    """Return whether Python code asks for the class of something itself: by ``isinstance``, or in a ``match``.

    Elsewhere it is C++ that does, such as that of ``torch.vmap``.
    """
    if not _QUESTIONS.isdisjoint(code.co_names):
        return True
    return any(one.opname == "MATCH_CLASS" for one in dis.get_instructions(code))


def _named(names: tuple[str, ...], frame: FrameType) -> Any:
    if not names:
        return _UNKNOWN
    first, *attributes = names
    spaces = (frame.f_locals, frame.f_globals, frame.f_builtins)
    found: Any = next((space[first] for space in spaces if first in space), _UNKNOWN)
    for name in attributes:
        # Only what needs no code of anybody's to run.
        found = getattr(found, "__dict__", {}).get(name, _UNKNOWN)
    return found


@functools.lru_cache(maxsize=4096)
def _called_names(code: CodeType, offset: int) -> tuple[str, ...] | None:
    """Return the name and the attributes that the call at ``offset`` is made by: ("torch", "pow").

    () for a call that is made by something else, None for what is no call.
    """
    before = [one for one in dis.get_instructions(code) if one.offset <= offset]
    if not before or not before[-1].opname.startswith("CALL"):
        return None
    call = before.pop()
    start = _start(call)
    while before and not (before[-1].opname in (*_NAMES, *_ATTRIBUTES) and _start(before[-1]) == start):
        if before[-1].opname.startswith("CALL") and _start(before[-1]) == start:
            return ()  # it calls a method of what another call returned
        before.pop()
    names = []
    while before and before[-1].opname in _ATTRIBUTES:
        names.append(str(before.pop().argval))
    if not before or before[-1].opname not in _NAMES:
        return ()
    return (str(before[-1].argval), *reversed(names))


def _start(instruction: dis.Instruction) -> tuple[int | None, int | None] | None:
    where = instruction.positions
    return None if where is None else (where.lineno, where.col_offset)
