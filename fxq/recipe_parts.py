"""What the fields of a recipe are made of: passes by name, rules, and the tables of its text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fxq.errors import RecipeError
from fxq.passbase import Pass
from fxq.quant.qconfig import Rule
from fxq.registry import create_pass


@dataclass(frozen=True)
class PassSpec:
    """A pass by name, with options as (name, value) pairs."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def create(self) -> Pass:
        """Return the pass; RecipeError if it, or one of its options, does not exist."""
        return create_pass(self.name, dict(self.options))


def as_tuple(given: Any, name: str, of: str) -> tuple[Any, ...]:
    """Return the entries of a field; a text or a single entry is a RecipeError."""
    if isinstance(given, str):
        raise RecipeError(f"{name} must be a tuple of {of}, got the string {given!r}")
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise RecipeError(f"{name} must be a tuple of {of}, got {given!r}")
    return tuple(given)


def as_rule(rule: Any) -> Rule:
    """Return a rule given as one, or as a (match, config) pair."""
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, tuple | list) and len(rule) == 2:
        return Rule(*rule)
    raise RecipeError(f"a rule is a fxq.Rule or a (match, config) pair, got {rule!r}")


def as_pass_spec(spec: Any) -> PassSpec:
    """Return a pass given as one, or by its name."""
    if isinstance(spec, PassSpec):
        return spec
    if isinstance(spec, str):
        return PassSpec(spec)
    raise RecipeError(f"a pass of a recipe is named, as a text or a fxq.PassSpec(name, options), got {spec!r}")


def tables(fields: Mapping[str, Any], name: str) -> list[tuple[dict[str, Any], str]]:
    """Return the tables under ``name``, each with what to call it."""
    tables = fields[name]
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise RecipeError(f"{name!r} in a recipe is a list of tables ([[{name}]]), got {tables!r}")
    return [(table, f"{name}[{index}]") for index, table in enumerate(tables)]


def spec_from_dict(fields: Mapping[str, Any], where: str) -> PassSpec:
    """Return a pass from its table in a text; anything else in it is a RecipeError."""
    unknown = sorted(set(fields) - {"name", "options"})
    if unknown or "name" not in fields:
        raise RecipeError(f"{where}: a pass has a 'name' and 'options', got {dict(fields)}")
    options = fields.get("options", {})
    if not isinstance(fields["name"], str) or not isinstance(options, dict):
        raise RecipeError(f"{where}: a pass has a name (text) and options (a table), got {dict(fields)}")
    # Lists become tuples, as everywhere in a recipe, so that it stays hashable and equal to what was written.
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return PassSpec(fields["name"], tuple(found.items()))
