"""What to do about a wrong batch, or what is no iterable of batches, as the end of the message that refuses it."""

import os
from typing import Any


def cure_of_batch(value: Any) -> str:
    """Return what to do about what is no tensor, "" where that is not known."""
    if hasattr(value, "__array__"):
        return ": make it a tensor with torch.from_numpy(...)"
    if isinstance(value, str):
        return f": a recipe is the third argument, recipe={value!r}"
    return ""


def cure_of_batches(batches: Any) -> str:
    """Return what to do about something that is nearly a loader, "" where nobody knows."""
    if isinstance(batches, str | os.PathLike):
        return ": load the files, or let the command line do so, fxq quantize MODEL --calib-data PATH"
    if hasattr(batches, "__getitem__"):  # a data set of torch, which need not be iterable
        return ": make batches of it with torch.utils.data.DataLoader(dataset, batch_size=...)"
    return ": call it" if callable(batches) else ""
