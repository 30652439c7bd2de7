"""Small batches of the kept samples to train on.

Samples of one form are pooled, so that a loader of single samples gives batches too, where the float model makes of a
sample what it makes of it in its own batch. Where it does not (the batch counts something else, or its samples meet),
batches stay whole.

An input that looks like images, one tensor (samples, 3, height, width), is mirrored now and then, and cut to a smaller
size where the float model takes one: that is more to see, and costs half.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxq import FxqError

Outputs = Callable[[Any], list[Tensor]]
_CLOSE = 1e-3  # of the largest value: a larger batch is summed in another order
_CROP, _CROP_STEP, _SMALLEST_CROP = 0.7, 32, 96
_ROUNDS_OF_CHANGED = 3


@dataclass(frozen=True)
class Pool:
    """Samples of one form, as one batch.

    Args:
        inputs: (args, kwargs) of a call, as ``rw.data`` yields them.
        count: how many samples; 1 where they cannot be taken apart.
        held: how many samples one of these holds: more than 1 where they cannot be taken apart.
        crop: the size (height, width) to cut images to, None to leave them as they are.
        is_mirrored: the input may be mirrored.
    """

    inputs: Any
    count: int
    held: int = 1
    crop: tuple[int, int] | None = None
    is_mirrored: bool = False

    @property
    def share(self) -> float:
        """How much of an image is left of it."""
        if self.crop is None:
            return 1.0
        height, width = _tensors(self.inputs)[0].shape[-2:]
        return self.crop[0] * self.crop[1] / (height * width)

    def drawn(self, index: Tensor, generator: torch.Generator) -> Any:
        """Return the samples at ``index``, mirrored and cut by chance where that is possible."""
        taken = self.at(index)
        if self.is_mirrored and float(torch.rand((), generator=generator)) < 0.5:
            taken = _mapped(taken, lambda image: image.flip(-1))
        if self.crop is not None:
            (image,) = _tensors(taken)
            places = [
                int(torch.randint(size - side + 1, (), generator=generator))
                for size, side in zip(image.shape[-2:], self.crop, strict=True)
            ]
            taken = _cut(taken, places, self.crop)
        return taken

    def at(self, index: Tensor) -> Any:
        """Return the samples at ``index``; what does not count samples is taken whole."""
        if self.count == 1:
            return self.inputs
        return _mapped(self.inputs, lambda one: one[index.to(one.device)] if _counts(one, self.count) else one)


@dataclass
class Minibatches:
    """Batches of about ``size`` samples, epoch by epoch, in an order that depends on nothing but the seed.

    Args:
        pools: the samples.
        size: samples of a step; more where no fewer can be taken.

    Attributes:
        samples: how many there are.
        most: how many a step may take.
    """

    pools: Sequence[Pool]
    size: int
    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.samples = sum(pool.count * pool.held for pool in self.pools)
        self.most = max([self.size, *(pool.held for pool in self.pools)])

    @property
    def share(self) -> float:
        """How much of the samples is left of them where images are cut, on average."""
        return sum(pool.share * pool.count * pool.held for pool in self.pools) / self.samples

    def steps_of(self, rounds: int) -> int:
        """Return in how many steps each sample is drawn so often, images that change as they are drawn more often."""
        changed = sum(pool.count for pool in self.pools if pool.is_mirrored)
        drawn = self.samples + (_ROUNDS_OF_CHANGED - 1) * changed
        return max(rounds * drawn // self.most, 1)

    def whole(self) -> Iterator[Any]:
        """Yield all samples once, in small batches, as they are."""
        for pool in self.pools:
            for part in torch.split(torch.arange(pool.count), self.size):
                yield pool.at(part)

    def steps(self) -> Iterator[list[Any]]:
        """Yield without end what to take one step on: batches of one form each, about ``size`` samples together."""
        found: list[Any] = []
        count = 0
        while True:
            for pool, index in self._epoch():
                found.append(pool.drawn(index, self._generator))
                count += len(index) * pool.held
                if count >= self.size:
                    yield found
                    found, count = [], 0

    def _epoch(self) -> list[tuple[Pool, Tensor]]:
        parts = [
            (pool, part)
            for pool in self.pools
            for part in torch.split(torch.randperm(pool.count, generator=self._generator), self.size)
        ]
        return [parts[place] for place in torch.randperm(len(parts), generator=self._generator).tolist()]


def pooled(batches: Sequence[Any], outputs: Outputs) -> list[Pool]:
    """Return the samples of ``batches`` pooled by form.

    Args:
        batches: (args, kwargs) of calls.
        outputs: the floating-point tensors that the float model returns for one.
    """
    forms: list[list[Any]] = []
    for inputs in batches:
        form = next((form for form in forms if _are_alike(form[0], inputs)), None)
        if form is None:
            forms.append([inputs])
        else:
            form.append(inputs)
    return [pool for form in forms for pool in _pools_of(form, outputs)]


def _pools_of(form: list[Any], outputs: Outputs) -> list[Pool]:
    """Return one pool of all batches of a form, or a pool for each where they cannot be taken apart."""
    count = sum(inputs.samples or 1 for inputs in form)
    whole = [Pool(inputs, 1, inputs.samples or 1) for inputs in form]
    if count == 1 or form[0].samples is None:
        return whole
    pool = Pool(_joined(form), count)
    if not _is_by_sample(pool, form[0], outputs):
        return whole
    return [_augmented(pool, outputs)]


def _is_by_sample(pool: Pool, first: Any, outputs: Outputs) -> bool:
    """Return whether the float model makes of the first samples what it makes of them in their own batch."""
    samples = first.samples
    count = max(samples // 2, 1) if samples > 1 else min(2, pool.count)
    if count == pool.count:
        return False
    expected, found = outputs(first), _tried(outputs, pool.at(torch.arange(count)))
    if found is None or len(found) != len(expected):
        return False
    common = min(samples, count)
    return all(
        _counts(want, samples) and _counts(got, count) and _are_close(want[:common], got[:common])
        for want, got in zip(expected, found, strict=True)
    )


def _augmented(pool: Pool, outputs: Outputs) -> Pool:
    tensors = _tensors(pool.inputs)
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].dim() != 4 or tensors[0].shape[1] != 3:
        return pool
    height, width = tensors[0].shape[-2:]
    crop = _crop_of(height), _crop_of(width)
    if crop == (height, width):
        return Pool(pool.inputs, pool.count, is_mirrored=True)
    one = pool.at(torch.arange(2))
    expected, found = outputs(one), _tried(outputs, _cut(one, [0, 0], crop))
    takes_it = found is not None and [len(got) for got in found] == [len(want) for want in expected]
    return Pool(pool.inputs, pool.count, crop=crop if takes_it else None, is_mirrored=True)


def _crop_of(size: int) -> int:
    return size if size < _SMALLEST_CROP else round(_CROP * size / _CROP_STEP) * _CROP_STEP


def _tried(outputs: Outputs, inputs: Any) -> list[Tensor] | None:
    """Return what the float model makes of inputs that it may not take; None where it does not."""
    try:
        return outputs(inputs)
    except (FxqError, RuntimeError, TypeError, ValueError, LookupError, AssertionError):
        return None


def _are_alike(first: Any, second: Any) -> bool:
    """Return whether two batches differ in nothing but their samples."""
    leaves, spec = pytree.tree_flatten(tuple(first))
    others, other_spec = pytree.tree_flatten(tuple(second))
    return spec == other_spec and all(
        _is_alike(one, first.samples, other, second.samples) for one, other in zip(leaves, others, strict=True)
    )


def _is_alike(one: Any, count: int | None, other: Any, other_count: int | None) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.dtype != other.dtype or one.dim() != other.dim():
        return False
    if _counts(one, count) and _counts(other, other_count):
        return one.shape[1:] == other.shape[1:]
    return torch.equal(one, other)


def _joined(form: list[Any]) -> Any:
    """Return one batch of all: what counts samples joined, the rest as it is in the first."""
    flat = [pytree.tree_flatten(tuple(inputs)) for inputs in form]
    joined = [
        torch.cat(ones) if isinstance(ones[0], Tensor) and _counts(ones[0], form[0].samples) else ones[0]
        for ones in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return type(form[0])(*pytree.tree_unflatten(joined, flat[0][1]))


def _mapped(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return type(inputs)(*pytree.tree_map_only(Tensor, function, tuple(inputs)))


def _cut(inputs: Any, places: Sequence[int], size: tuple[int, int]) -> Any:
    (top, left), (height, width) = places, size
    return _mapped(inputs, lambda image: image[..., top : top + height, left : left + width])


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor)]


def _counts(tensor: Tensor, samples: int | None) -> bool:
    return tensor.dim() > 0 and len(tensor) == samples


def _are_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * one.abs().max())
