"""What several processes keep of the batches that each reads: the samples that one process would, which reads all.

What is kept, and what is held out, depends on the sizes of the batches before it. So the sizes of the first batches are
exchanged, each process decides the same from them, and what is to be kept is exchanged then: ``max_samples`` at most.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.distributed import Team, in_turn
from fxq.samples import Samples


@dataclass
class Share:
    """What one process read.

    Args:
        batches, seen: how many batches and samples.
        shown: a few samples to compare on, each with the number of its batch; on the CPU.
    """

    batches: int = 0
    seen: int = 0
    shown: list[tuple[int, Inputs]] = field(default_factory=list)

    @contextmanager
    def counting(self, index: int, samples: Samples) -> Iterator[None]:
        """Count a batch that the block gives to ``samples``, and keep what those keep to show."""
        seen, shown = samples.seen, len(samples.shown)
        yield
        self.batches += 1
        self.seen += samples.seen - seen
        self.shown += [(index, _on_cpu(one)) for one in samples.shown[shown:]]


class FirstBatches:
    """The batches of one process from which samples may be kept.

    Args:
        samples: says how many are kept and held out.
        are_whole: a batch cannot be taken apart.
    """

    def __init__(self, samples: Samples, are_whole: bool) -> None:
        self._samples = samples.empty()
        self._are_whole = are_whole
        self._alone = self._samples.empty()  # what would be kept if there were no other process: never less
        self._batches: list[tuple[Any, Inputs]] = []
        self.sizes: list[int] = []

    def add(self, batch: Any, inputs: Inputs) -> None:
        """Take a batch in, as it is and as arguments."""
        size = 0 if inputs.samples == 0 and not self._are_whole else self._alone.count(inputs)
        self._batches.append((batch, inputs))
        self.sizes.append(size)
        if size:
            self._alone.decide(size, self._are_whole)

    @property
    def are_enough(self) -> bool:
        """Will nothing be kept of the batches behind these?"""
        return self._alone.is_settled

    def exchange(self, team: Team, model: nn.Module, samples: Samples) -> list[tuple[Any, Inputs]]:
        """Let ``samples`` keep what is kept of all first batches; return this process's own, without what is held out.

        One collective for the sizes, and one from each process that has samples to keep.
        """
        decided = self._samples.empty()
        order: list[tuple[int, int]] = []
        own: dict[int, tuple[int, int]] = {}
        for rank, index, size in in_turn(team.exchange("the sizes of the first batches", self.sizes)):
            if not size:
                continue
            held, learned = decided.decide(size, self._are_whole)
            order += [(rank, index)] if held or learned else []
            if rank == team.rank:
                own[index] = held, learned
        kept: dict[int, tuple[list[Inputs], list[Inputs]]] = {}
        rests: list[tuple[Any, Inputs]] = []
        for index, (held, learned) in own.items():
            batch, inputs = self._batches[index]
            part = self._samples.empty()
            rest = part.keep(inputs, held, learned)
            kept[index] = [*map(_on_cpu, part.learned)], [*map(_on_cpu, part.held_out)]
            rests += [] if rest is None else [(batch, rest)]
        owners = sorted({rank for rank, _ in order})
        found = {rank: team.hand_out("the samples that are kept", rank, kept) for rank in owners}
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
        for rank, index in order:
            learned_of, held_of = found[rank][index]
            samples.learned += [_moved(one, device) for one in learned_of]
            samples.held_out += [_moved(one, device) for one in held_of]
        return rests


def _on_cpu(inputs: Inputs) -> Inputs:
    return _moved(inputs, "cpu")


def _moved(inputs: Inputs, device: Any) -> Inputs:
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(inputs))
    return Inputs(args, kwargs)
