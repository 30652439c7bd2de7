"""Text of others (names of modules, files, recipes, messages of errors), shown as what it is."""

import difflib
from collections.abc import Iterable


def literal(text: str, kept: str = "") -> str:
    """Return ``text`` with what a terminal obeys or does not show in Python's escapes, but for the characters ``kept``.

    Line breaks, escape codes, marks that turn the direction of writing, and halves of characters among them.
    """
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )


def did_you_mean(name: object, known: Iterable[str], otherwise: str) -> str:
    """Return the name that was probably meant, or what else there is to say."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def has_utf8_form(text: str) -> bool:
    """Return whether a file can hold ``text``: halves of characters (lone surrogates) have no form in UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
