"""OpRule: one row of a target, what it quantizes of which kinds of operations."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fxq.quant.descriptor import QuantDescriptor

# When the inputs of a row's kinds are quantized, or the output, and what each word means.
WHEN: Mapping[str, str] = MappingProxyType(
    {
        "on_request": "where a rule of the recipe names the operation: by default it would cost speed or accuracy",
        "may_be_negative": "inputs that may be negative, with a descriptor of their own; others as other rows say",
        "after_conv": "the first input, where a convolution computes it",
        "all_readers_quantized": "where all that read the output take quantized input",
        "absorbed_by_conv": "the residual input of an add that a convolution takes into its epilogue",
        "read_in_integers": "the output, where something that reads it takes quantized input",
        "sliced_for_integers": "the output, where all that read it take slices of it, as quantized input",
    }
)
SIGNED = "may_be_negative"
OUTPUT_WHEN = frozenset({"read_in_integers", "sliced_for_integers"})
SLOTS = ("inputs", "weight", "output")


@dataclass(frozen=True)
class OpRule:
    """What a target quantizes of the operations of some kinds. Rows for one kind add up.

    A slot is False (nothing to say), True (quantized, with the target's default descriptor) or a QuantDescriptor.

    Args:
        kinds: a word of :mod:`fxq.kinds`, or several; kept as a tuple.
        inputs: all tensors that the operation reads.
        weight: what it stores. Where the inputs are not quantized it computes in float from integer weights. "matmul"
            stands for a product with a stored matrix, which is a linear layer.
        output: what it makes, behind the activations that fuse.
        when: a word of WHEN, if ``inputs``, or ``output``, are quantized under a condition only; None for always.
        why: for people who ask ``explain``: why the operation stays in float, or computes in float from integer
            weights. A row without slots must have it.
    """

    kinds: str | Iterable[str]
    inputs: bool | QuantDescriptor = False
    weight: bool | QuantDescriptor = False
    output: bool | QuantDescriptor = False
    when: str | None = None
    why: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_kinds(self.kinds))

    @property
    def slots(self) -> tuple[tuple[str, bool | QuantDescriptor], ...]:
        """The slots that the row quantizes, by name."""
        return tuple((name, getattr(self, name)) for name in SLOTS if getattr(self, name) is not False)


def as_kinds(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Return one or several words as a tuple; a set is sorted, since it has no order of its own."""
    if isinstance(kinds, str):
        return (kinds,)
    if not isinstance(kinds, Iterable):
        return (kinds,)  # no word: the target that holds it will say so
    return tuple(sorted(kinds)) if isinstance(kinds, set | frozenset) else tuple(kinds)
