"""Several processes that calibrate one model together, each on its share of the data, over torch.distributed.

All that they tell each other goes through :meth:`Team.exchange`, one collective of the default process group
(``all_gather_object``), or where few have anything to tell through :meth:`Team.hand_out`. A process that fails tells
the others, which stop as well; where one is gone, the collective ends with the group's own timeout or as soon as its
connection is closed.

Batches of all processes have one order: the first of each by rank, then the second of each, and so on. It is that of
one list dealt out in turn, as by ``batches[rank::world_size]``.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, distributed
from torch.utils import _pytree as pytree

from fxq.errors import CalibrationError

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class _Message:
    """What one process tells: ``value`` where all went well, ``error`` in words where it stops."""

    what: str
    value: Any
    error: str | None = None


class Team:
    """The processes of the default group, from the first exchange of a run to the last.

    Attributes:
        rank, size: of this process, and how many there are.
        is_over: nobody waits for this process any more.
    """

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.is_over = False

    def exchange(self, what: str, value: Any, is_last: bool = False) -> list[Any]:
        """Return what each process gave, by rank; all call this alike.

        Args:
            what: that is exchanged, for messages.
            value: what pickle can hold, tensors on the CPU.
            is_last: nothing is exchanged after it.

        Raises:
            CalibrationError: another process failed, is gone, or is in another call.
        """
        found = self._gather(_Message(what, value))
        self.is_over = self.is_over or is_last
        self._check(found)
        return [one.value for one in found]

    def hand_out(self, what: str, owner: int, value: Any) -> Any:
        """Return what the process of rank ``owner`` gave; arguments and errors of :meth:`exchange`.

        A gathering would reserve as much for each process as the largest has to tell.
        """
        message: list[Any] = [_Message(what, value) if self.rank == owner else None]
        with self._explained(what):
            distributed.broadcast_object_list(message, src=owner)
        return message[0].value

    def share_out(self, what: str, items: Sequence[Item], compute: Callable[[Item], Found]) -> list[Found]:
        """Return what ``compute`` finds for each item, in order; each process computes every ``size``-th of them.

        Args:
            what: is found, for messages.
            items: the same in all processes.
            compute: returns what pickle can hold; tensors come to the CPU.

        Raises:
            CalibrationError: as of :meth:`exchange`.
        """
        own = [pytree.tree_map_only(Tensor, Tensor.cpu, compute(item)) for item in items[self.rank :: self.size]]
        return [one for _, _, one in in_turn(self.exchange(what, own))]

    def _check(self, found: list[_Message]) -> None:
        failed = {rank: one.error for rank, one in enumerate(found) if one.error is not None}
        if failed:
            self.is_over = True
            text = "; ".join(f"rank {rank}: {error}" for rank, error in failed.items())
            raise CalibrationError(f"another process of the group failed, so this one (rank {self.rank}) stops: {text}")
        if len({one.what for one in found}) > 1:
            self.is_over = True
            text = ", ".join(f"rank {rank} {one.what}" for rank, one in enumerate(found))
            raise CalibrationError(
                f"the processes are not in the same call; they exchange: {text}. Call fxq in all of them alike"
            )

    def tell(self, error: Exception) -> None:
        """Tell the others, who may be waiting, that this process stops with ``error``."""
        if not self.is_over:
            self.is_over = True
            with contextlib.suppress(CalibrationError):  # they are gone: then there is nobody to tell
                self._gather(_Message("", None, f"{type(error).__name__}: {error}"))

    def _gather(self, message: _Message) -> list[_Message]:
        found: list[Any] = [None] * self.size
        with self._explained(message.what):
            distributed.all_gather_object(found, message)
        return found

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the backend: each has types of its own
            self.is_over = True
            raise CalibrationError(
                f"rank {self.rank} waited for the {self.size - 1} others to exchange {what}, and not all came: "
                "one of them died, or does not call fxq; its own output says why. How long to wait is the timeout of "
                f"init_process_group. {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error


@contextlib.contextmanager
def telling(team: Team | None) -> Iterator[None]:
    """Tell the others where the block fails."""
    try:
        yield
    except Exception as error:
        if team is not None:
            team.tell(error)
        raise


def team_of_now() -> Team | None:
    """Return the processes to work with; None where this is the only one."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return Team()
    return None


def in_turn(by_rank: Sequence[Sequence[Item]]) -> Iterator[tuple[int, int, Item]]:
    """Yield rank, index and item of lists of unlike length in the order of all batches."""
    for index, row in enumerate(itertools.zip_longest(*by_rank, fillvalue=_NOTHING)):
        for rank, item in enumerate(row):
            if item is not _NOTHING:
                yield rank, index, item


_NOTHING: Any = object()
