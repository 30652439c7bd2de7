"""Samples: what is kept of the batches, some of it to learn from and some to judge by."""

import itertools
import sys
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils import _pytree as pytree

from fxq.batches import Inputs

# Enough to tell good from bad, of several batches, since a loader may be sorted.
_MOST_SHOWN, _MOST_SHOWN_OF_BATCH, _MOST_SHOWN_BYTES = 16, 4, 2**27
_MOST_SHOWN_WHOLE = 4
FEWEST_COMPARED = 8


@dataclass
class Samples:
    """Copies of the samples that a run keeps.

    Args:
        most: how many to keep, those held out included; 0 keeps none.
        share: how many of them to hold out.
        most_held_out: how many at most to hold out, of all that come by; no fewer than the share of ``most``.
        learned: kept to learn from.
        held_out: kept to judge by.
        shown: a few of the first batches, kept in any case, for the quantized model to be compared on.
        seen: how many samples came by, kept or not.
        are_whole: batches cannot be taken apart: dimension 0 of a tensor counts no samples.
        part: keep those to learn from in parts of so many at least, and less than twice as many; 0: as they come.
    """

    most: int = 0
    share: float = 0.0
    most_held_out: int = 0
    learned: list[Inputs] = field(default_factory=list)
    held_out: list[Inputs] = field(default_factory=list)
    shown: list[Inputs] = field(default_factory=list)
    seen: int = 0
    are_whole: bool = False
    part: int = 0
    _learned_count: int = 0
    _held_count: int = 0

    @property
    def held_count(self) -> int:
        """How many samples are held out."""
        return self._count(self.held_out)

    @property
    def is_settled(self) -> bool:
        """Is nothing kept any more of what comes, late batches that cannot be taken apart aside?"""
        return self._room_to_learn() == 0 and self.seen >= self.most and self._held_count >= self._most_held

    @property
    def _most_held(self) -> int:
        return max(int(self.most * self.share), self.most_held_out if self.share else 0)

    def empty(self) -> "Samples":
        """Return what keeps samples as these do, and has none yet."""
        return Samples(self.most, self.share, self.most_held_out, are_whole=self.are_whole, part=self.part)

    def decide(self, count: int, is_whole: bool) -> tuple[int, int]:
        """Return how many of the next ``count`` samples, a batch, are held out, and how many kept to learn from."""
        held = self._due(count, is_whole or self.are_whole or count == 1)
        learned = min(self._room_to_learn(), count - held)
        self.seen += count
        self._held_count += held
        self._learned_count += learned
        return held, learned

    def take(self, inputs: Inputs, is_whole: bool = False) -> Inputs | None:
        """Hold some samples of a batch out, the last ones, and keep others; return those to learn from.

        Args:
            inputs: a batch; one without a batch dimension counts as one sample.
            is_whole: it cannot be taken apart: hold it out as a whole, or not at all.

        Returns:
            ``inputs`` without the samples held out; None if all are.
        """
        count = self.count(inputs)
        held, learned = self.decide(count, is_whole)
        return self.keep(inputs, held, learned)

    def keep(self, inputs: Inputs, held: int, learned: int) -> Inputs | None:
        """Keep of a batch what was decided; return what ``take`` does."""
        count = self.count(inputs)
        if held:
            self.held_out.append(self._part(inputs, count - held, count))
        if held == count:
            return None
        rest = inputs.part(0, count - held) if held else inputs
        if learned:
            self.learned += self._parts(rest, learned)
        return rest

    def some(self, most: int, can_cut: bool) -> list[Inputs]:
        """Return at most ``most`` of the samples kept to learn from, from all batches alike; at least a batch.

        Some batches as a whole where they are small, or cannot be taken apart.
        """
        total, passed, found, taken = self._count(self.learned), 0, list[Inputs](), 0
        for inputs in self.learned:
            count = self.count(inputs)
            passed += count
            due = min(count, round(passed * most / total) - taken)
            if due == count or (due > 0 and can_cut and count > most // 4):
                found.append(inputs if due == count else self._part(inputs, 0, due))
                taken += due
        return found or self.learned[:1]

    def compared(self, can_cut: bool) -> list[Inputs]:
        """Return what to compare the quantized model on: what was held out, with others where that is little."""
        if not self.held_out:
            return self.shown
        few = self.held_count < FEWEST_COMPARED
        return [*self.held_out, *self.some(_MOST_SHOWN - self.held_count, can_cut)] if few else self.held_out

    def hold_nothing_out(self) -> None:
        """Let passes learn from what was held out too."""
        self.learned += self.held_out
        self.held_out = []

    def show(self, inputs: Inputs) -> None:
        """Keep a few samples of ``inputs``, a batch, to compare on, as long as they are few and small."""
        count = self.count(inputs)
        most = _MOST_SHOWN_WHOLE if self.are_whole else _MOST_SHOWN
        room = min(most - self._count(self.shown), _MOST_SHOWN_OF_BATCH, count)
        one = _bytes(inputs) / count
        if self.shown and one:
            room = min(room, int((_MOST_SHOWN_BYTES - sum(map(_bytes, self.shown))) / one))
        if room > 0:
            self.shown.append(self._part(inputs, 0, room))

    def _part(self, inputs: Inputs, start: int, stop: int) -> Inputs:
        """Return a copy of the samples from ``start`` to ``stop``, of all where they are one."""
        return inputs.part(0, sys.maxsize) if self.are_whole else inputs.part(start, stop)

    def _parts(self, inputs: Inputs, count: int) -> list[Inputs]:
        """Return copies of the first ``count`` samples, in parts of about one size."""
        parts = count // self.part if self.part else 1
        if parts < 2 or self.are_whole:
            return [self._part(inputs, 0, count)]
        ends = [count * index // parts for index in range(parts + 1)]
        return [self._part(inputs, start, stop) for start, stop in itertools.pairwise(ends)]

    def count(self, inputs: Inputs) -> int:
        """Return how many samples a batch counts as."""
        return 1 if self.are_whole else inputs.samples or 1

    def _count(self, batches: list[Inputs]) -> int:
        return sum(map(self.count, batches))

    def _due(self, count: int, is_whole: bool) -> int:
        """Return how many of the next ``count`` samples are held out: the share of all, spread over the batches."""
        share = min(int((self.seen + count) * self.share), self._most_held)
        due = max(share - self._held_count, 0)
        if is_whole:
            return count if 0 < count <= 2 * due else 0  # rounded to whole batches
        return min(due, count)

    def _room_to_learn(self) -> int:
        return max(self.most - int(self.most * self.share) - self._learned_count, 0)


def _bytes(inputs: Inputs) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor))
