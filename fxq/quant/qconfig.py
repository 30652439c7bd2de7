"""QConfig and Rule: which descriptors a part of a model gets, chosen by module path, module type or predicate."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxq.errors import DescriptorError, DescriptorTypeError, RecipeDescriptorError, RecipeError
from fxq.literal import did_you_mean
from fxq.quant.descriptor import QuantDescriptor

Match = str | type[nn.Module] | Callable[[str, nn.Module | None], bool]


@dataclass(frozen=True)
class QConfig:
    """The descriptors of one part of a model.

    Args:
        activation: descriptor of activations; None stands for the target's default, which may be to leave them in
            float.
        weight: descriptor of weights; None stands for the target's default. Any ``axis`` means "one range per output
            channel": the pass that swaps modules puts the dimension in, which differs for transposed convolutions.
    """

    activation: QuantDescriptor | None = None
    weight: QuantDescriptor | None = None

    def __post_init__(self) -> None:
        for name, part in (("activation", self.activation), ("weight", self.weight)):
            if part is not None and not isinstance(part, QuantDescriptor):
                raise DescriptorTypeError(f"QConfig({name}=...) takes a fxq.QuantDescriptor or None, got {part!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        parts = {"activation": self.activation, "weight": self.weight}
        return {name: part.to_dict() for name, part in parts.items() if part is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "QConfig":
        """Build from plain data; anything it does not know is a RecipeError."""
        unknown = sorted(set(fields) - {"activation", "weight"})
        if unknown:
            hint = did_you_mean(unknown[0], ("activation", "weight"), "there are 'activation' and 'weight'")
            raise RecipeError(f"unknown entry {unknown[0]!r} in a config; {hint}")
        found = {}
        for name, part in fields.items():
            try:
                found[name] = QuantDescriptor.from_dict(part)
            except DescriptorError as error:
                raise RecipeDescriptorError(f"{name}: {error}") from error
        return cls(**found)


@dataclass(frozen=True)
class Rule:
    """What the modules that match get: a QConfig, or None to stay in float.

    Args:
        match: a glob on the module path ("layer1.*", "fc"; it also matches everything below that path), a module
            type, or a predicate ``(path, module) -> bool``, where module is None for a function in the graph.
        config: the descriptors, or None.
    """

    match: Match
    config: QConfig | None

    def __post_init__(self) -> None:
        if not (isinstance(self.match, str | type) or callable(self.match)):
            raise RecipeError(f"a rule matches a glob, a module type or a predicate, got {self.match!r}")
        if self.config is not None and not isinstance(self.config, QConfig):
            raise RecipeError(f"rule {self}: the config must be a QConfig or None (stay in float), got {self.config!r}")

    def matches(self, path: str, module: nn.Module | None, around: Iterable[tuple[str, type[nn.Module]]]) -> bool:
        """Return whether the rule covers a node.

        Args:
            path: path of the called module, or a name for the function.
            module: the called module, None for a function.
            around: path and type of each module around the node, outermost first.
        """
        if isinstance(self.match, str):
            return any(fnmatch.fnmatchcase(name, self.match) for name in (path, *(name for name, _ in around)))
        if isinstance(self.match, type):
            return isinstance(module, self.match) or any(_is_subclass(kind, self.match) for _, kind in around)
        return bool(self.match(path, module))

    def names(self, path: str, module: nn.Module | None) -> bool:
        """Return whether the rule is about this very module, rather than about a part of the model that it is in."""
        if isinstance(self.match, str):
            return self.match == path
        return isinstance(module, self.match) if isinstance(self.match, type) else bool(self.match(path, module))

    def __str__(self) -> str:
        match = self.match if isinstance(self.match, str) else getattr(self.match, "__qualname__", repr(self.match))
        return f"({match!r}, {'None' if self.config is None else 'QConfig'})"


def _is_subclass(kind: Any, base: type[nn.Module]) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)
