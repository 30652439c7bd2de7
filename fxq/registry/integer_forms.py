"""Integer forms of operations: registering one, and finding that of a kind."""

from collections.abc import Callable
from typing import TypeVar

from fxq.errors import PluginError
from fxq.kinds import known_kinds
from fxq.registry import tables
from fxq.registry.tables import IntegerForm

FormType = TypeVar("FormType", bound=type[IntegerForm])


def integer_form(*kinds: str) -> Callable[[FormType], FormType]:
    """Return a class decorator that registers how operations of some kinds are computed on integers.

    ``@fxq.integer_form("relu")`` over a class without arguments that has the two methods of :class:`IntegerForm`;
    ``fxq.to_integer`` asks it. Kinds are words of ``fxq.kinds``; ``fxq.register_kind`` adds one.

    Raises:
        PluginError: there is no such kind, it has a form of another class, or a method is missing.
    """
    for kind in kinds or (None,):
        if kind not in known_kinds():
            raise PluginError(
                f'an integer form is for kinds of operations, and {kind!r} is none: write @fxq.integer_form("relu"), '
                "after fxq.register_kind for a kind of your own"
            )

    def register(form_type: FormType) -> FormType:
        names = {kind: repr(kind) for kind in kinds}
        needs = {"why_not": "node", "codes": "writer, node, grid"}
        words = "is the integer form of", "has the integer form"
        cure = "give your operation a kind of its own (fxq.register_kind)"
        tables.add_class(tables.integer_forms, names, form_type, needs, words, cure)
        return form_type

    return register


def find_integer_form(kind: str) -> IntegerForm | None:
    """Return how operations of ``kind`` are computed on integers, None where they are not."""
    return tables.integer_forms.get(kind)


def kinds_with_integer_form() -> list[str]:
    """Return the kinds that have one, in alphabetical order."""
    return sorted(tables.integer_forms)
