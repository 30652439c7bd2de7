"""FloatReference: samples, and what the float model makes of them, for the quantized model to be compared with."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxq.batches import Inputs
from fxq.compare.outputs import Named, Seen, are_shares, named_leaves, running_alike
from fxq.compare.parity import OutputParity, compare_all, is_rounding, rounding_floors
from fxq.compare.quality import Quality, measure, sqnr_db
from fxq.compare.traced import buffers_left, plain_transformers
from fxq.compare.trained_statistics import SeenStatistics, watched_norms
from fxq.errors import TraceError
from fxq.graph.float_model import in_float
from fxq.graph.moved import follow_move
from fxq.graph.streams import by_placeholder
from fxq.graph.weight_changes import WeightChanges
from fxq.original import checksum
from fxq.process_lock import PROCESS_LOCK

_MOST_SHOWN = 5
_NOISE_DB = 60.0
ORIGINAL, GRAPH, CHANGED = "the original model", "the traced float model", "the model with its quantizers off"


@dataclass(frozen=True)
class ComparedInputs:
    """Inputs to compare on, kept by ``prepare`` or ``calibrate``; the float model runs on them when it is asked for.

    Args:
        inputs: of some calls of the model.
        checksum: of the prepared model's weights then.
        is_original: these were the original model's, but for what passes made of them.
        were_learned: the model was calibrated on these very samples.
    """

    inputs: tuple[Inputs, ...]
    checksum: str
    is_original: bool
    were_learned: bool = False


@dataclass(frozen=True)
class FloatReference:
    """What to compare with.

    Args:
        inputs: of some calls of the model.
        outputs: what the float model returns for each.
        against: which float model that was.
        holds_for_one: the traced graph computes what the original does for a single sample, too.
        were_learned: the model was calibrated on these very samples.
        unlike: in words, how the inputs differ from what the model's batch norms saw in training; None: they do not.
        are_shares: which outputs are those of a sigmoid or softmax, in order.
    """

    inputs: tuple[Inputs, ...]
    outputs: tuple[Named, ...]
    against: str
    holds_for_one: bool = True
    were_learned: bool = False
    unlike: str | None = None
    are_shares: tuple[bool, ...] = ()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(one.samples or 1 for one in self.inputs)

    def quality(self, model: GraphModule, seen: Seen | None = None) -> Quality:
        """Run ``model`` on the samples, and compare; ``seen``: what it made of some inputs, which may be among them."""
        found: list[Named] = []
        for one in follow_move(model, self.inputs):
            is_known = seen is not None and seen.is_of(tuple(by_placeholder(model, one).values()))
            found += [seen.outputs] if seen is not None and is_known else run_all(model, (one,))
        return self.compare(self.outputs, found, self.samples)

    def compare(self, expected: Sequence[Named], found: Sequence[Named], samples: int) -> Quality:
        """Compare what was found with what is expected, each of some batches, of ``samples`` samples in all."""
        return measure(expected, found, samples, self.against, self.were_learned, self.are_shares)


def refer(
    prepared: GraphModule, compared: ComparedInputs, original: nn.Module | None, changes: WeightChanges
) -> FloatReference:
    """Return what the float model makes of the kept inputs: the user's model where it is there, else the graph's.

    Args:
        prepared: the model that is quantized; as it is now, in float, if it was trained since or got a state dict.
        compared: the inputs.
        original: the user's model, if it is there and has the tensors that it had.
        changes: what passes of the stage CALIBRATED did, which is taken back for the comparison.

    Raises:
        TraceError: the traced graph computes something else than the original.
    """
    inputs = follow_move(prepared, compared.inputs)
    is_changed = checksum(prepared) != compared.checksum
    plain = prepared if is_changed else changes.undone(prepared)
    with in_float(plain):
        traced = run_all(plain, inputs)
    model = original if compared.is_original and not is_changed else None
    if model is None:
        against = CHANGED if is_changed else GRAPH
        return FloatReference(
            inputs, traced, against, were_learned=compared.were_learned, are_shares=are_shares(prepared)
        )
    with watched_norms(model) as norms:
        outputs = run_in_float(model, inputs)
    for one, expected, found in zip(inputs, outputs, traced, strict=True):
        _check_alike(model, plain, one, expected, found)
    holds_for_one = _holds_for_one(plain, model, inputs[0])
    return FloatReference(
        inputs, outputs, ORIGINAL, holds_for_one, compared.were_learned, _unlike(norms, inputs), are_shares(prepared)
    )


def _unlike(norms: Sequence[SeenStatistics], inputs: Sequence[Inputs]) -> str | None:
    """Return in words how ``inputs`` differ from what the model was trained on, and in which range they are."""
    found = next(filter(None, (norm.unlike() for norm in norms)), None)
    first = [
        next((leaf for leaf in pytree.tree_leaves(tuple(one)) if isinstance(leaf, Tensor)), None) for one in inputs
    ]
    values = [value for value in first if value is not None and value.numel()]
    if found is None or not values:
        return found
    low, high = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
    return f"{found}; the data lies in [{low:.3g}, {high:.3g}]"


def _holds_for_one(plain: GraphModule, model: nn.Module, inputs: Inputs) -> bool:
    """Return False where a single sample takes another way through the model's Python than the traced batch."""
    if (inputs.samples or 1) < 2:
        return True
    one = (inputs.part(0, 1),)
    try:
        (expected,) = run_in_float(model, one)
        with in_float(plain):
            (found,) = run_all(plain, one)
        _check_alike(model, plain, one[0], expected, found)
    except TraceError:
        return False
    except Exception:  # the model, or its graph, takes only the batches that it was made for, and says so
        return True
    return True


def run_all(model: nn.Module, inputs: Sequence[Inputs]) -> tuple[Named, ...]:
    """Return the named outputs of ``model`` for each of ``inputs``; it runs as in ``running_alike``."""
    found = []
    for one in inputs:
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tuple(one.fitting(model)))
        with running_alike(model):
            result = nn.Module.__call__(model, *args, **kwargs)
        found.append([(name, value.detach().clone()) for name, value in named_leaves(result, "output", Tensor)])
    return tuple(found)


def run_original(model: nn.Module, inputs: tuple[Any, ...]) -> Named:
    """Return the named outputs of the user's model for positional inputs, in float, as its graph computes."""
    return run_in_float(model, (Inputs(inputs, {}),))[0]


def run_in_float(model: nn.Module, inputs: Sequence[Inputs]) -> tuple[Named, ...]:
    """Return the named outputs of the user's model for each of ``inputs``, in float, as its graph computes."""
    # Quantizers that the user put in are off in both.
    with PROCESS_LOCK, plain_transformers(), in_float(model):
        return run_all(model, placed_like(model, inputs))


def placed_like(model: nn.Module, inputs: Sequence[Inputs]) -> Any:
    """Return ``inputs`` on the device of ``model``."""
    own = next(itertools.chain(model.parameters(), model.buffers()), None)
    return inputs if own is None else pytree.tree_map_only(Tensor, lambda tensor: tensor.to(own.device), tuple(inputs))


def _check_alike(model: nn.Module, plain: GraphModule, inputs: Inputs, expected: Named, found: Named) -> None:
    given = tuple(by_placeholder(plain, inputs).values())
    names = [name for name, _ in expected]
    if names != [name for name, _ in found]:
        what = f"returns {', '.join(name for name, _ in found)} where it returns {', '.join(names)}"
        raise _misled(model, what, given)
    for (name, want), (_, have) in zip(expected, found, strict=True):
        if want.shape != have.shape:
            what = f"returns {name!r} of shape {tuple(have.shape)} where it has {tuple(want.shape)}"
            raise _misled(model, what, given)
    parity = compare_all(expected, [value for _, value in found], [1.0] * len(found))
    for (_, want), (_, have), output in zip(expected, found, parity, strict=True):
        is_close = is_rounding(output.max_abs, want) or _is_noise(want, have)
        if not (is_close or _does_rounding_move(plain, given, found, parity)):
            what = f"computes another {output.name!r}, which differs by up to {output.max_abs:.3g}"
            raise _misled(model, what, given)


def _does_rounding_move(
    plain: GraphModule, values: tuple[Any, ...], found: Named, parity: Sequence[OutputParity]
) -> bool:
    """Return whether rounding alone moves all outputs as far: some models divide by next to nothing."""

    def is_enough(floors: Sequence[OutputParity]) -> bool:
        return all(output.is_within(0.0, floor) for output, floor in zip(parity, floors, strict=True))

    with in_float(plain):
        return is_enough(rounding_floors(plain, values, found, [1.0] * len(found), is_enough))


def _is_noise(want: Tensor, have: Tensor) -> bool:
    """Return whether rounding explains what folding batch norms changed: deep models add it up."""
    found = sqnr_db([want], [have.to(want.device)])
    return found is not None and found >= _NOISE_DB


def _misled(model: nn.Module, what: str, inputs: tuple[Any, ...]) -> TraceError:
    left = buffers_left(model, inputs)
    if left:
        return TraceError(
            f"a second call of the model ({type(model).__name__}) returns something else, for what the first left in "
            f"the buffer {', '.join(map(repr, left[:_MOST_SHOWN]))}, and calibration calls it many times; a file does "
            "each time what the first call does. Make what is kept between calls an input and an output of forward"
        )
    return TraceError(
        f"on calibration data the traced graph {what} in the model itself ({type(model).__name__}). It was traced on "
        "the example inputs, and a branch or number in its Python that depends on the data was burned in. Make the "
        "choice a tensor operation (torch.where), or name the module that holds it in "
        "recipe.replace(leaf_modules=(...,)); it is then left in float. Or a pass of the recipe changed what the graph "
        "computes: fxq.prepare(..., verify=True) names it, if it is not one of calibration"
    )
