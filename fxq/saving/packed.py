"""Packed: what is saved of a model, as tensors and plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxq.calib import Calibrator

# Before the names of tensors that no module of the model holds: "fxq/calibrator/conv1_input_quantizer/low".
OWN = "fxq/"
CALIBRATOR, BEFORE, AFTER, EQUIVALENT = (f"{OWN}{name}/" for name in ("calibrator", "before", "after", "equivalent"))
FIELDS = frozenset({
    "version", "fxq", "stage", "is_converted", "recipe", "target", "qat", "verify", "frontend", "untraceable", "inputs",
    "model", "graph", "plans", "record", "quantizers", "edits", "changes", "ties", "frozen", "modes", "compared",
    "quality", "islands", "left",
})  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """A saved model.

    Args:
        header: what JSON can hold; ``fxq.saving.pack`` says what is in it.
        tensors: by name; those of the model's modules under their paths.
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin so, without the prefix."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of the model's modules, ranges among them, by path."""
        return {name: value for name, value in self.tensors.items() if not name.startswith(OWN)}


@dataclass(frozen=True)
class Source:
    """What a converted model was made of, as it was then.

    Args:
        packed: the prepared model, with tensors of its own, without what was observed.
        calibrators: what observed, by the path of the quantizer: copies, whose states are asked when it is saved.
    """

    packed: Packed
    calibrators: Mapping[str, Calibrator]
