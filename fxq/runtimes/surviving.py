"""Files timed in turn in one process: where one of them ends it, or is refused, the others keep their times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fxq.errors import RuntimeCrashedError, RuntimeRefusedError
from fxq.runtimes.timing import Latency

File = TypeVar("File")

# What tells that a runtime does not run a file.
DOES_NOT_RUN = (RuntimeRefusedError, RuntimeCrashedError)


@dataclass(frozen=True)
class Timed:
    """What came of timing files.

    Args:
        latencies: of each file; None of one that does not run.
        errors: what was said of each that does not run, by its place.
        failure: what was said of all that run by themselves, where they once did not in turn; "" otherwise.
        in_turn: whether the latencies are of the same rounds, so that one can be compared with another.
    """

    latencies: tuple[Latency | None, ...]
    errors: Mapping[int, str] = field(default_factory=dict)
    failure: str = ""
    in_turn: bool = True


def time_survivors(time_files: Callable[[Sequence[File]], Sequence[Latency]], files: Sequence[File]) -> Timed:
    """Time files in turn; where that fails, each by itself, and then those that run in turn once more.

    Args:
        time_files: times files in turn, in a process of its own.
        files: at least one.
    """
    try:
        return Timed(tuple(time_files(files)))
    except DOES_NOT_RUN as error:
        failure = str(error)
    if len(files) == 1:
        return Timed((None,), {0: failure})
    alone = [time_survivors(time_files, [file]) for file in files]
    errors = {place: one.errors[0] for place, one in enumerate(alone) if one.errors}
    latencies = [one.latencies[0] for one in alone]
    running = [place for place in range(len(files)) if place not in errors]
    if len(running) > 1:
        try:
            in_turn = time_files([files[place] for place in running])
        except DOES_NOT_RUN as error:
            return Timed(tuple(latencies), errors, str(error), in_turn=False)
        for place, latency in zip(running, in_turn, strict=True):
            latencies[place] = latency
    return Timed(tuple(latencies), errors, "" if errors else failure)
