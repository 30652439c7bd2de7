"""Where batches come from, and how they are handed to a model: one at a time, and nothing of them is kept."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxq.batches import Forward, Inputs, as_inputs, call, naming_batch
from fxq.cures import cure_of_batches
from fxq.errors import CalibrationError, InputError
from fxq.forward_calls import first_call
from fxq.progress import track


class BatchSource:
    """Batches, and how to feed them.

    Args:
        batches: any iterable of tensors, tuples of inputs, dicts of keyword inputs, or (input, label) pairs.
        forward: ``forward(model, batch)`` for batches of any other form; it calls the model it is given.
        progress: show a bar, if stderr is a terminal.

    Attributes:
        loader_error: what iterating ``batches`` raised, if it did.

    Raises:
        InputError: ``batches`` is not iterable.
    """

    def __init__(self, batches: Iterable[Any], forward: Forward | None, progress: bool) -> None:
        if isinstance(batches, Tensor | Mapping):
            batches = [batches]  # iterating it would take the batch apart
        if not isinstance(batches, Iterable) or isinstance(batches, str):
            raise InputError(
                f"batches must be an iterable of batches, got {type(batches).__name__}{cure_of_batches(batches)}"
            )
        self.batches, self.forward, self.progress = batches, forward, progress
        self.loader_error: BaseException | None = None

    @property
    def is_iterator(self) -> bool:
        """Are the batches an iterator, which can be read but once?"""
        return iter(self.batches) is self.batches

    def loaded(self, description: str) -> Iterator[Any]:
        """Yield the batches as they are, under a bar; what their loader raises is noted."""
        try:
            yield from track(self.batches, description, self.progress)
        except BaseException as error:  # of the user's loader: it is not the pass that failed
            self.loader_error = error
            raise

    def as_call(self, gm: GraphModule, batch: Any) -> Inputs:
        """Return the arguments with which ``gm`` is called for a batch, or first called by the user's function.

        Raises:
            InputError: the batch is of another form than a call of ``gm`` takes.
            CalibrationError: the user's function calls nothing.
        """
        if self.forward is None:
            return as_inputs(gm, batch)
        inputs = first_call(gm, batch, self.forward)
        if inputs is None:
            raise CalibrationError("forward= did not call the model that it is given: model(...)")
        return inputs

    def stream(self, gm: GraphModule, description: str) -> Iterator[tuple[int, Inputs]]:
        """Yield number and arguments of each batch that is not empty, one at a time; nothing is kept.

        Raises:
            CalibrationError: there is no batch.
            InputError: a batch is of another form than a call of ``gm`` takes.
        """
        seen = False
        for index, batch in enumerate(self.loaded(description)):
            with naming_batch(gm, batch, index):
                inputs = self.as_call(gm, batch)
            if inputs.samples != 0:
                seen = True
                yield index, inputs
        if not seen:
            raise CalibrationError("there was no batch: the loader is empty, or an iterator was used up")

    def run_rest(self, gm: GraphModule, batch: Any, rest: Inputs) -> None:
        """Run ``gm`` on ``rest``, what is left of a batch; the user's function alone can tell, and takes all of it."""
        if self.forward is not None:
            self.forward(gm, batch)
        else:
            call(gm, *rest.args, **rest.kwargs)
