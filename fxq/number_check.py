"""Hold passes to their tolerance: run the graph before and after them on the example inputs, and compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxq.compare.outputs import Named, Seen, named_outputs, output_steps
from fxq.compare.parity import OutputParity, compare_all, is_rounding, rounding_floors
from fxq.compare.rounding_noise import LOWERED, REORDERED
from fxq.errors import PassError
from fxq.passbase import Pass, describe_pass
from fxq.tolerance import ANY, EXACT, LSB, ROUNDING, Tolerance

# Nobody writes such a tolerance for what is still the same computation.
_MOST_LSB = 16
_MOST_NAMED = 5


@dataclass
class NumberCheck:
    """Compares a graph with what it was, pass by pass, or once around all passes that promise something.

    Args:
        inputs: what to run the graph on.
        each_pass: compare after every pass; else only before each pass that promises nothing (ANY), and in ``finish``.
    """

    inputs: tuple[Any, ...]
    each_pass: bool = True

    def __post_init__(self) -> None:
        self._reference: tuple[Named, list[float]] | None = None  # outputs, and one LSB of each
        self._passes: list[Pass] = []  # since the reference
        self._edited: list[str] = []  # the nodes that they edited, by their own account
        self._previous = "tracing"

    def before(self, gm: GraphModule, step: Pass) -> None:
        """Run ``gm``, on which ``step`` is about to work, where there is nothing yet to compare with.

        Raises:
            PassError: passes before ``step`` moved the outputs further than they promise.
        """
        if self._reference is None:
            self.look_at(gm)
        elif step.tolerance == ANY:
            self.finish(gm)

    def after(self, gm: GraphModule, step: Pass, edited: Iterable[str] = ()) -> None:
        """Note that ``step`` has worked on ``gm``, on nodes ``edited``; errors of :meth:`before`, about ``step``."""
        self._passes.append(step)
        self._edited += edited
        if step.tolerance == ANY:
            self.look_at(gm)
        elif self.each_pass:
            self.finish(gm)

    def finish(self, gm: GraphModule) -> None:
        """Compare ``gm`` with what it was before the passes since; errors of :meth:`before`."""
        if self._reference is None or not self._passes:
            return
        try:
            found = named_outputs(gm, self.inputs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the model's own code runs: it may raise anything
            raise PassError(
                f"{self._blamed()} left a graph that fails on inputs that it ran on before: {type(error).__name__}: "
                f"{error}{self._where()}"
            ) from error
        self._compare(gm, found)
        self.look_at(gm, found)

    def look_at(self, gm: GraphModule, outputs: Named | None = None) -> None:
        """Compare with ``gm`` as it is now, from here on; ``outputs``: what it makes of the inputs, if known."""
        if outputs is None:
            outputs = named_outputs(gm, self.inputs)
        self._reference = outputs, output_steps(gm, outputs)
        if self._passes:
            self._previous = self._passes[-1].name
        self._passes, self._edited = [], []

    @property
    def last_seen(self) -> Seen | None:
        """What the graph made of the inputs when it was last looked at."""
        return None if self._reference is None else Seen(self.inputs, self._reference[0])

    def _compare(self, gm: GraphModule, found: Named) -> None:
        assert self._reference is not None
        expected, steps = self._reference
        self._compare_form(expected, found)
        tolerance = EXACT
        for step in self._passes:
            tolerance = tolerance.then(step.tolerance)
        actual = [value for _, value in found]
        parity = compare_all(expected, actual, steps)
        if tolerance == EXACT and any(output.max_abs for output in parity) and not self._is_reproducible(gm, found):
            tolerance = ROUNDING  # on some devices the same sum comes out differently each time
        floors: list[OutputParity | None] = [None] * len(parity)

        def is_kept(known: Sequence[OutputParity | None]) -> bool:
            return all(map(_is_kept, [tolerance] * len(parity), parity, expected, known))

        noise = LOWERED if tolerance.lsb else REORDERED
        if not is_kept(floors) and tolerance != EXACT:
            floors = [*rounding_floors(gm, self.inputs, found, steps, is_kept, noise)]
        for output, pair, floor in zip(parity, expected, floors, strict=True):
            if not _is_kept(tolerance, output, pair, floor):
                raise PassError(self._message(output, pair[1], tolerance))

    def _compare_form(self, expected: Named, found: Named) -> None:
        if len(expected) != len(found):
            raise PassError(
                f"{self._blamed()} changed the number of outputs from {len(expected)} to {len(found)}, which no "
                f"tolerance but fxq.ANY allows{self._where()}"
            )
        for (name, old), (_, new) in zip(expected, found, strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise PassError(
                    f"{self._blamed()} changed {name!r} from {old.dtype} {tuple(old.shape)} to {new.dtype} "
                    f"{tuple(new.shape)}, which no tolerance but fxq.ANY allows{self._where()}"
                )

    def _is_reproducible(self, gm: GraphModule, found: Named) -> bool:
        again = named_outputs(gm, self.inputs)
        return not any(
            output.max_abs for output in compare_all(found, [value for _, value in again], [1.0] * len(again))
        )

    def _message(self, output: OutputParity, want: Tensor, tolerance: Tolerance) -> str:
        return (
            f"{self._blamed()} changed {output.name!r} by up to {output.max_abs:.3g} ({output.max_lsb:.2f} LSB, on "
            f"average {output.mean_lsb:.2f}, one LSB being {output.step:.3g}), and promises {tolerance}; mend it, or "
            f"declare {_needed(output, want)}{self._where()}"
        )

    def _blamed(self) -> str:
        if len(self._passes) == 1:
            return f"{describe_pass(self._passes[0])}, run after {self._previous},"
        return f"the passes {', '.join(step.name for step in self._passes)} together"

    def _where(self) -> str:
        """Return, to end an error with, which nodes the pass to blame says that it edited."""
        nodes = list(dict.fromkeys(self._edited)) if len(self._passes) == 1 else []
        more = f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else ""
        return f". It edited {', '.join(map(repr, nodes[:_MOST_NAMED]))}{more}" if nodes else ""


def _is_kept(
    tolerance: Tolerance, output: OutputParity, expected: tuple[str, Tensor], floor: OutputParity | None
) -> bool:
    if tolerance == EXACT:
        return output.max_abs == 0
    if tolerance == ROUNDING:
        is_noise = floor is not None and output.is_within(0.0, floor)
        return is_noise or is_rounding(output.max_abs, expected[1])
    return output.is_within(tolerance.lsb, floor)


def _needed(output: OutputParity, want: Tensor) -> str:
    if is_rounding(output.max_abs, want):
        return "`tolerance = fxq.ROUNDING`"
    count = next((count for count in range(1, _MOST_LSB + 1) if output.is_within(count)), None)
    if count is None:
        return "`tolerance = fxq.ANY` if it is meant to compute something else"
    return f"`tolerance = fxq.{LSB(count)}`, or fxq.ANY if it is meant to compute something else"
