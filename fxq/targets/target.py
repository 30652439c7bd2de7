"""Target: what a runtime fuses and expects, as rows of data. Passes ask it; none asks for a runtime by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tomli_w

from fxq.errors import TargetError
from fxq.quant.descriptor import QuantDescriptor
from fxq.targets.check_descriptor import check_activation, check_activation_axis, check_weight
from fxq.targets.check_target import check_target
from fxq.targets.constraints import Constraint, Derived, Fixed, Same
from fxq.targets.file_rules import FileRules
from fxq.targets.formats import Formats
from fxq.targets.op_rule import SIGNED, OpRule
from fxq.targets.target_text import arguments_from_dict, target_to_dict
from fxq.toml_text import parse_toml, read_text

# The ONNX operators that have weights of their own, whose axis FileRules names.
_WEIGHT_OPERATORS = MappingProxyType({"conv": "Conv", "conv_transpose": "ConvTranspose"})
_INT8, _INT8_PER_CHANNEL = QuantDescriptor(), QuantDescriptor(axis=0)
_ANY_FILE, _EIGHT_BITS = FileRules(), Formats()


@dataclass(frozen=True)
class Target:
    """Placement, number formats and file rules of one runtime. Kinds are the words of :mod:`fxq.kinds`.

    ``Target("mine", (OpRule(("conv", "linear"), inputs=True, weight=True),))`` is a target of int8 symmetric
    activations and weights, the latter per output channel.

    Args:
        name: what a recipe calls it.
        ops: what is quantized of which operations; a kind without a row stays in float.
        constraints: what is demanded of the ranges of several tensors.
        file: what the exported file must look like.
        activation: default descriptor; one with calibrator="dynamic" stands for a runtime that measures each tensor as
            it comes. None: activations stay in float, only weights are integers.
        weight: default descriptor.
        formats: the numbers that the runtime computes with.
        fused_activations: kinds that run in the epilogue of the operation before them.
        float_readers: kinds that read in float at full precision: an elementwise operation or concatenation that one of
            them reads, directly or through others of its kind, stays in float with them.

    Raises:
        TargetError: a value means nothing, or two contradict each other; names the target and the field.
    """

    name: str
    ops: tuple[OpRule, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    file: FileRules = _ANY_FILE
    activation: QuantDescriptor | None = _INT8
    weight: QuantDescriptor = _INT8_PER_CHANNEL
    formats: Formats = _EIGHT_BITS
    fused_activations: frozenset[str] = frozenset()
    float_readers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, kind in (
            ("ops", tuple), ("constraints", tuple), ("fused_activations", frozenset), ("float_readers", frozenset),
        ):  # fmt: skip
            given = getattr(self, name)
            if isinstance(given, Iterable) and not isinstance(given, str):
                object.__setattr__(self, name, kind(given))
        check_target(self)

    @cached_property
    def _rows(self) -> dict[str, tuple[OpRule, ...]]:
        rows: dict[str, tuple[OpRule, ...]] = {}
        for row in self.ops:
            for kind in row.kinds:
                rows[kind] = (*rows.get(kind, ()), row)
        return rows

    def rules_for(self, kind: str) -> tuple[OpRule, ...]:
        """Return the rows for a kind, in order."""
        return self._rows.get(kind, ())

    def quantizes_inputs(self, kind: str, when: str | None = None) -> bool:
        """Return whether inputs of ``kind`` are quantized always (None), or under the condition ``when``."""
        return any(row.inputs is not False and row.when == when for row in self.rules_for(kind))

    def has_integer_form(self, kind: str) -> bool:
        """Return whether inputs of ``kind`` are quantized by default, or where a rule asks for it."""
        return self.quantizes_inputs(kind) or self.quantizes_inputs(kind, "on_request")

    def stores_integers(self, kind: str) -> bool:
        """Return whether weights of ``kind`` are quantized."""
        return any(row.weight is not False for row in self.rules_for(kind))

    def quantizes_output(self, kind: str, when: str | None = None) -> bool:
        """Return whether the output of ``kind`` is quantized always (None), or under the condition ``when``."""
        return any(row.output is not False and row.when == when for row in self.rules_for(kind))

    def descriptor(self, kind: str, slot: str, may_be_negative: bool = False) -> QuantDescriptor | None:
        """Return the descriptor of a slot ("inputs", "weight", "output") of ``kind``: its row's own, or the default.

        ``may_be_negative``: of a tensor that may, for which ``kind`` can have a row of its own.
        """
        rows = sorted(self.rules_for(kind), key=lambda row: row.when != SIGNED)  # what holds for fewer comes first
        if not may_be_negative:
            rows = [row for row in rows if row.when != SIGNED]
        own = [given for row in rows if isinstance(given := getattr(row, slot), QuantDescriptor)]
        return own[0] if own else self.weight if slot == "weight" else self.activation

    def same(self, kind: str) -> tuple[str, ...]:
        """Return the slots of ``kind`` whose tensors share one range, () if none do."""
        found = [item.slots for item in self.constraints if isinstance(item, Same) and kind in item.kinds]
        return found[0] if found else ()

    def fixed(self, kind: str) -> Fixed | None:
        """Return the range that outputs of ``kind`` always have, None if it follows from the data."""
        found = (item for item in self.constraints if isinstance(item, Fixed) and kind in item.kinds)
        return next(found, None)

    def derives_bias(self, kind: str) -> bool:
        """Return whether the bias of ``kind`` is int32 in steps of input step x weight step."""
        return any(isinstance(item, Derived) and kind in item.kinds for item in self.constraints)

    def weight_axis(self, kind: str) -> int:
        """Return the dimension of a weight of ``kind`` that keeps its own range."""
        return dict(self.file.weight_axes).get(_WEIGHT_OPERATORS.get(kind, ""), 0)

    def reason(self, kind: str) -> str | None:
        """Return why this runtime computes ``kind`` in float, None where nothing special is known."""
        return next((row.why for row in self.rules_for(kind) if row.why), None)

    @property
    def is_dynamic(self) -> bool:
        """Are activations quantized with the range that they have at run time?"""
        return self.activation is not None and self.activation.is_dynamic

    @property
    def needs_data(self) -> bool:
        """Are there ranges of activations to be calibrated?"""
        return self.activation is not None and not self.is_dynamic

    def check_activation(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if activations at ``where`` (a path and what asked for it) cannot have ``descriptor``."""
        check_activation(self, descriptor, where)

    def check_activation_axis(self, descriptor: QuantDescriptor, where: str) -> None:
        """Raise a TargetError if ``descriptor`` has several ranges for one activation, which no runtime takes."""
        check_activation_axis(self, descriptor, where)

    def check_weight(self, descriptor: QuantDescriptor, where: str, kind: str = "linear") -> None:
        """Raise a TargetError if weights of an operation of ``kind`` at ``where`` cannot have ``descriptor``."""
        check_weight(self, descriptor, where, kind)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without what has its default."""
        return target_to_dict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build a target from plain data; anything it does not know is a TargetError."""
        return cls(**arguments_from_dict(fields, [field.name for field in dataclasses.fields(cls)]))

    def to_toml(self) -> str:
        """Return the target as text."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build a target from text; anything it does not know is a TargetError."""
        return cls.from_dict(parse_toml(text, "the target", TargetError))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a target from a TOML file; one that cannot be read, or means nothing, is a TargetError."""
        text = read_text(path, "the target", TargetError)
        try:
            return cls.from_toml(text)
        except TargetError as error:
            raise TargetError(f"{path}: {error}") from error
