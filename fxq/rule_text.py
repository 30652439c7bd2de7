"""Rules and configs of a recipe as plain data, and back."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxq.errors import RecipeError
from fxq.quant.qconfig import QConfig, Rule


def config_from_dict(fields: Any, where: str) -> QConfig:
    """Return the config that a table of a recipe, called ``where``, describes."""
    if not isinstance(fields, dict) or not all(isinstance(part, dict) for part in fields.values()):
        raise RecipeError(f"{where}: a config has the tables 'activation' and 'weight', got {fields!r}")
    try:
        return QConfig.from_dict(fields)
    except RecipeError as error:
        raise type(error)(f"{where}: {error}") from error


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """Return a rule as plain data; RecipeError for a predicate, or a class that cannot be found again by its name."""
    if isinstance(rule.match, str):
        match: dict[str, Any] = {"match": rule.match}
    elif isinstance(rule.match, type):
        match = {"type": f"{rule.match.__module__}.{rule.match.__qualname__}"}
        _module_type(match["type"], f"rule {rule}")  # a class inside of a function cannot be found again by its name
    else:
        raise RecipeError(f"rule {rule} matches by a predicate, which cannot be written as text; use a glob or a type")
    if rule.config is None or rule.config == QConfig():
        return {**match, "float": rule.config is None}
    return {**match, **rule.config.to_dict()}


def rule_from_dict(fields: Mapping[str, Any], where: str) -> Rule:
    """Return the rule that an entry of a recipe, called ``where``, describes; RecipeError for what it does not know."""
    rest = {name: value for name, value in fields.items() if name not in ("match", "type", "float")}
    if ("match" in fields) == ("type" in fields):
        raise RecipeError(f"{where}: a rule has either 'match' (a glob) or 'type' (a module class), got {dict(fields)}")
    named = "match" if "match" in fields else "type"
    if not isinstance(fields[named], str):
        raise RecipeError(f"{where}.{named} must be a text, got {fields[named]!r}")
    in_float = fields.get("float", False)
    if not isinstance(in_float, bool):
        raise RecipeError(f"{where}.float must be true or false, got {in_float!r}")
    if in_float and rest:
        raise RecipeError(f"{where}: a rule with float = true has no descriptors, got {dict(fields)}")
    if not rest and "float" not in fields:
        raise RecipeError(
            f"{where} says nothing about {fields[named]!r}: add float = true to leave it in float, a table "
            "'activation' or 'weight', or float = false for the target's defaults"
        )
    config = None if in_float else config_from_dict(rest, where)
    return Rule(fields["match"] if named == "match" else _module_type(fields["type"], where), config)


def _module_type(name: str, where: str) -> type[nn.Module]:
    # A recipe is data: naming a type must not run code, so only what is imported already is found.
    module, _, attribute = name.rpartition(".")
    if module == "torch.nn":
        module_object: Any = importlib.import_module("torch.nn")
    else:
        import sys  # noqa: PLC0415 - the table of what is imported, needed here only

        module_object = sys.modules.get(module)
    found = getattr(module_object, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise RecipeError(
            f"{where}: rule type {name!r} is not a module class that is imported; import it first, or use a glob"
        )
    return found
