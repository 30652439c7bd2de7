"""DataStage: what the passes of the stage CALIBRATED share beside the graph."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from fxq.data import Data
from fxq.errors import PassError


@dataclass
class DataStage:
    """The data of a run, and the float model that passes compare with.

    Args:
        data: None where the user gave none.
        weights: those of the float model by path, as ``prepare`` left them or as an equivalent rewrite made them;
            None where all passes only stream.
        changed: paths of the parameters that passes changed, and of modules that they put in or switched off.
        replaced: the modules in whose place passes put others, by path.
        inserted: names of the nodes that passes inserted.
        switched_off: paths of the quantizers that passes switched off.
        left: names of the nodes that passes left in float.
        runs_unjudged: passes that improve run even where too few samples are held out to judge them.
        covering: paths of the quantizers whose ranges cover samples held out that they would not cover otherwise; None
            before ranges took any in.
    """

    data: Data | None = None
    weights: dict[str, Tensor] | None = None
    changed: list[str] = field(default_factory=list)
    replaced: dict[str, nn.Module] = field(default_factory=dict)
    inserted: list[str] = field(default_factory=list)
    switched_off: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    covering: set[str] | None = None
    runs_unjudged: bool = True
    _corrected: set[str] = field(default_factory=set)

    def copy(self) -> "DataStage":
        """Return a copy whose notes are its own."""
        weights = None if self.weights is None else dict(self.weights)
        covering = None if self.covering is None else set(self.covering)
        return DataStage(
            self.data,
            weights,
            list(self.changed),
            dict(self.replaced),
            list(self.inserted),
            list(self.switched_off),
            list(self.left),
            covering,
            self.runs_unjudged,
            set(self._corrected),
        )

    def become(self, other: "DataStage") -> None:
        """Take over the notes of ``other``."""
        self.weights, self.changed, self._corrected = other.weights, other.changed, other._corrected
        self.replaced, self.inserted, self.covering = other.replaced, other.inserted, other.covering
        self.switched_off, self.left = other.switched_off, other.left

    def note_change(self, pass_name: str, paths: list[str], equivalent: Tensor | None) -> None:
        """Note that a parameter with these paths was set; ``equivalent`` is its value in the float model too.

        Raises:
            PassError: an equivalent rewrite of what was corrected before, whose value in the float model is another.
        """
        if equivalent is not None and self.weights is not None:
            corrected = next((path for path in paths if path in self._corrected), None)
            if corrected is not None:
                raise PassError(
                    f"pass {pass_name!r} rewrites {corrected!r} equivalently after another pass corrected it: the "
                    "float model has another value there. Put it before the correction in the recipe"
                )
            self.weights.update(dict.fromkeys(paths, equivalent.detach().clone()))
        else:
            self._corrected.update(paths)
        self.changed.extend(paths)
