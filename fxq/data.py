"""Data: the batches that passes of the stage CALIBRATED see.

They stream: a loader is read once, one batch at a time, and nothing of it is kept. Where a pass needs its samples
again, at most ``max_samples`` are kept, as copies on the model's device; a share of them is held out, for the pipeline
to judge passes by, and no pass sees those. Samples are what dimension 0 of a batch counts.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from fxq.batch_source import BatchSource
from fxq.batches import Forward, Inputs, call, early_end, naming_batch
from fxq.distributed import Team, team_of_now, telling
from fxq.errors import CalibrationError, InputError
from fxq.forward_calls import seen_call
from fxq.progress import track
from fxq.samples import FEWEST_COMPARED, Samples
from fxq.shared_samples import FirstBatches, Share

MAX_SAMPLES = 64
_FEWEST, _MOST_BYTES = 8, 2**29
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 4, 32
# On a CPU tensors of more than 32 MiB are mapped anew each time (glibc), which takes longer than most that fills them.
_FEWEST_OF_PART, _BYTES_OF_PART = 2, 2**24


class Data(BatchSource):
    """Batches, how to feed them, and how much of them to keep.

    Args:
        batches: any iterable of tensors, tuples of inputs, dicts of keyword inputs, or the (input, label) pairs of a
            DataLoader. A generator is read once; a second reading gives the samples that were kept of it.
        forward: ``forward(model, batch)`` for batches of any other form; it calls the model it is given.
        max_samples: how many samples to keep, those held out included. ``rw.run_both`` works on all of them at once.
            None for 64, or as many as take 512 MiB where the model's largest tensor is, at least 8; and up to 32 are
            held out of all that are read, or as many as take as much, at least 4.
        held_out: the share of the kept samples to hold out, in [0, 1); with 0 passes are kept unjudged.
        progress: show a bar, if stderr is a terminal.
        share: where torch.distributed runs several processes, the batches are this process's share of the data, and all
            of them read together (see ``fxq.distributed``); False: this process works alone.

    Attributes:
        ranges_cover_held_out: ranges follow the samples held out too, which no pass saw.
        note: what was odd about the batches, None where nothing was.
        team: the processes that read together in this run; None for one.
        is_unmerged: each of them has seen its own share, and not told the others yet.

    Raises:
        InputError: ``batches`` is not iterable, or a number is out of range.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        forward: Forward | None = None,
        max_samples: int | None = None,
        held_out: float = 0.125,
        progress: bool = True,
        share: bool = True,
    ) -> None:
        super().__init__(batches, forward, progress)
        if max_samples is not None and (
            isinstance(max_samples, bool) or not isinstance(max_samples, int) or max_samples < 1
        ):
            raise InputError(f"max_samples is how many samples to keep, 1 or more, got {max_samples!r}")
        if not isinstance(held_out, int | float) or not 0 <= held_out < 1:
            raise InputError(f"held_out is a share of the samples, from 0 to below 1, got {held_out!r}")
        self._most_given, self.held_out = max_samples, float(held_out)
        self._most_that_fit = MAX_SAMPLES
        self._samples = Samples()
        self._was_read = False
        self.ranges_cover_held_out = False
        self._batch_count = 0
        self.note: str | None = None
        self.share = share
        self.team: Team | None = None
        self.is_unmerged = False
        self._own = Share()
        self._model: GraphModule | None = None

    @property
    def max_samples(self) -> int:
        """How many samples to keep, those held out included."""
        return self._most_that_fit if self._most_given is None else self._most_given

    @property
    def is_cut_short(self) -> bool:
        """Did memory decide how many samples were kept, and were there more?"""
        return self.max_samples < min(self.seen, MAX_SAMPLES) and self._most_given is None

    def begin(
        self,
        keep: bool,
        hold_out: bool,
        are_whole: bool = False,
        sample_bytes: int = 0,
        model: GraphModule | None = None,
    ) -> None:
        """Start a run.

        Args:
            keep: keep samples for later readings.
            hold_out: hold some of them out.
            are_whole: a batch is one sample, whatever its tensors look like.
            sample_bytes: what the largest tensor of the model takes for one sample; 0 where that is not known.
            model: whose inputs the batches are; None: they cannot be iterated over before something feeds them.
        """
        self._model = model
        # What a generator gave is gone: what was kept of it stays, and what was held out stays held out.
        self.team, self.is_unmerged = None, False
        if self._was_read and self._samples.learned and self.is_iterator:
            return
        fit = _MOST_BYTES // sample_bytes if sample_bytes else MAX_SAMPLES
        self._most_that_fit = max(_FEWEST, min(MAX_SAMPLES, fit))
        self.team = team_of_now() if self.share else None
        self.progress = self.progress and (self.team is None or self.team.rank == 0)
        share = self.held_out if hold_out else 0.0
        most_held_out = max(_FEWEST_HELD_OUT, min(_MOST_HELD_OUT, fit)) if self._most_given is None else 0
        self._samples = Samples(
            self.max_samples if keep else 0,
            share if keep else 0.0,
            most_held_out,
            are_whole=are_whole,
            # Where none is held out batches stay whole: the model may take no others.
            part=_fewest_of_part(model, sample_bytes) if share and self.forward is None else 0,
        )
        self._was_read = False

    def feed(self, gm: GraphModule, description: str = "Running the model") -> None:
        """Run ``gm`` on all batches but the samples held out, one batch at a time, without gradients.

        Where samples are kept a second call runs it on those. Where all passes only stream it reads the batches again.

        Raises:
            CalibrationError: there is no batch, a generator is used up, or a quantizer saw NaN or infinity.
            InputError: a batch does not fit the model.
        """
        if self._was_read and not self.keeps_samples and self.is_iterator:
            raise CalibrationError(
                "an iterator was read by an earlier pass, and nothing of it was kept: give batches that can be read "
                "again (a list, a DataLoader), or let a pass declare streams = False, so that samples are kept"
            )
        if not self._was_read or not self.keeps_samples:
            self._read(gm, description, runs=True)
            return
        with torch.no_grad():
            for inputs in track(self._samples.learned, description, self.progress):
                call(gm, *inputs.args, **inputs.kwargs)

    def __iter__(self) -> Iterator[Inputs]:
        """Yield (args, kwargs) of the samples that were kept to learn from, batch by batch, as often as asked.

        Raises:
            CalibrationError: none are kept: no pass of the run needs them again.
        """
        if not self._was_read and self.keeps_samples and self._model is not None:
            self.kept(self._model)
        if not self._samples.learned:
            raise CalibrationError(
                "no samples were kept: they are where a pass of the recipe declares streams = False (the default)"
            )
        return iter(self._samples.learned)

    def kept(self, gm: GraphModule) -> list[Inputs]:
        """Return the samples that were kept to learn from; read now if nothing has fed the batches yet."""
        if not self._was_read:
            self._read(gm, "Reading samples", runs=False)
        return self._samples.learned

    @contextlib.contextmanager
    def few(self, most: int) -> Iterator[None]:
        """Let passes learn from no more than ``most`` of the samples that were kept, for as long as this lasts."""
        samples = self._samples
        learned = samples.learned
        samples.learned = samples.some(most, can_cut=self.forward is None)
        try:
            yield
        finally:
            samples.learned = learned

    def judging(self, gm: GraphModule) -> list[Inputs]:
        """Return the samples that were held out. They are the pipeline's: a pass that learns from them cheats."""
        self.kept(gm)
        return self._samples.held_out

    def feed_held_out(self, gm: GraphModule) -> None:
        """Run ``gm`` on the samples held out, without gradients."""
        with torch.no_grad():
            for inputs in self._samples.held_out:
                call(gm, *inputs.args, **inputs.kwargs)

    def hold_nothing_out(self) -> None:
        """Let passes learn from all that was kept: nothing is judged by what was held out."""
        self._samples.hold_nothing_out()

    @property
    def compared(self) -> list[Inputs]:
        """The samples to compare the quantized model on: those held out, and where these are few, some others."""
        return self._samples.compared(can_cut=self.forward is None)

    @property
    def learned_from_compared(self) -> bool:
        """Are among the samples to compare on some that the model was calibrated on, if only by its ranges?"""
        return self.ranges_cover_held_out or self._samples.held_count < FEWEST_COMPARED

    @property
    def keeps_samples(self) -> bool:
        """Are samples kept, for passes that need them again?"""
        return self._samples.most > 0

    @property
    def seen(self) -> int:
        """How many samples were read, those held out included."""
        return self._samples.seen

    @property
    def batch_count(self) -> int:
        """How many batches were read."""
        return self._batch_count

    def _read(self, gm: GraphModule, description: str, runs: bool) -> None:
        """Go over the batches; without ``runs`` only until enough samples are kept, and held out."""
        if self.team is not None:
            self._read_shared(gm, description, runs, self.team)
            return
        kept = self._samples
        # An earlier reading may have failed half-way.
        self._samples = samples = kept.empty()
        count, ended, self.note = 0, True, None
        with torch.no_grad():
            for index, batch in enumerate(self.loaded(description)):
                count += 1
                with naming_batch(gm, batch, index):
                    self._take(gm, batch, runs, samples)
                if not runs and samples.is_settled:
                    ended = False
                    break
        if not samples.seen:
            found = f"all {count} batches are empty" if count else "the loader is empty, or an iterator was used up"
            raise CalibrationError(f"there was no batch to calibrate with: {found}")
        self._was_read, self._batch_count = True, count
        if ended and (note := early_end(self.batches, count)) is not None:
            self.note = note
            warnings.warn(note, stacklevel=2)

    def _take(self, gm: GraphModule, batch: Any, runs: bool, samples: Samples) -> None:
        if self.forward is not None and not samples.most:
            samples.seen += 1
            samples.show(seen_call(gm, batch, self.forward))
            return
        inputs = self.as_call(gm, batch)
        if self.forward is None:
            samples.show(inputs)
        # The user's function alone can take a batch apart, so whole ones are held out.
        is_empty = self.forward is None and inputs.samples == 0
        rest = None if is_empty else samples.take(inputs, is_whole=self.forward is not None)
        if runs and rest is not None:
            self.run_rest(gm, batch, rest)

    def _read_shared(self, gm: GraphModule, description: str, runs: bool, team: Team) -> None:
        """Go over this process's share; what is kept, and held out, is as if one process read all the batches."""
        kept = self._samples
        self._samples = kept.empty()
        self._own, self.note = Share(), None
        with telling(team), torch.no_grad():
            batches = enumerate(self.loaded(description))
            if kept.most:
                self._keep_shared(gm, batches, runs, team)
            streamed = Samples(are_whole=kept.are_whole)
            for index, batch in batches if runs else ():
                with naming_batch(gm, batch, index), self._own.counting(index, streamed):
                    self._take(gm, batch, runs, streamed)
        self._was_read, self._batch_count, self.is_unmerged = True, self._own.batches, runs
        self._samples.seen = self._own.seen

    def _keep_shared(self, gm: GraphModule, batches: Iterator[tuple[int, Any]], runs: bool, team: Team) -> None:
        """Read on until no process keeps more; exchange what is kept; run what is left of these batches."""
        is_whole = self.forward is not None
        first = FirstBatches(self._samples, is_whole)
        for index, batch in batches:
            with naming_batch(gm, batch, index):
                inputs = self.as_call(gm, batch)
            with self._own.counting(index, self._samples):
                self._samples.show(inputs)
            first.add(batch, inputs)
            if first.are_enough:
                break
        rests = first.exchange(team, gm, self._samples)
        self._own.seen += sum(first.sizes)
        for batch, rest in rests if runs else ():
            self.run_rest(gm, batch, rest)

    def summary(self) -> Share:
        """Return what the others are to be told of this process's share."""
        return self._own

    def merge(self, shares: Sequence[Share]) -> None:
        """Take over what all processes read, by rank.

        Raises:
            CalibrationError: none of them had a batch.
        """
        self.is_unmerged = False
        self._batch_count, self._samples.seen = sum(one.batches for one in shares), sum(one.seen for one in shares)
        if not self._samples.seen:
            raise CalibrationError(
                f"there was no batch to calibrate with: the loaders of all {len(shares)} processes are empty, or "
                "iterators were used up"
            )
        self._samples.shown.clear()
        found = [(index, rank, inputs) for rank, one in enumerate(shares) for index, inputs in one.shown]
        for _, _, inputs in sorted(found, key=lambda one: one[:2]):
            self._samples.show(inputs)


def _fewest_of_part(model: GraphModule | None, sample_bytes: int) -> int:
    """Return in parts of how many samples at least to keep batches; 0 to keep them whole, which is best on a GPU."""
    is_on_cpu = model is None or all(one.device.type == "cpu" for one in model.parameters())
    return max(_FEWEST_OF_PART, _BYTES_OF_PART // sample_bytes) if is_on_cpu and sample_bytes else 0
