"""What a runtime executes of a file, in the same words for all runtimes.

A dtype is written as numpy writes it ("float32", "uint8"), and as ONNX does in lower case where numpy has no name
("bfloat16", "float8e4m3fn", "int4"); "" where the runtime does not tell.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from fxq.errors import InputError

OPEN = -1
_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8e4m3fn"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64"), 8),
}


@dataclass(frozen=True)
class OpTensor:
    """An activation as an operation reads or writes it.

    Args:
        name: the runtime's.
        dtype: see the module.
        shape: an open dimension is ``OPEN``; None where the runtime does not tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None

    @property
    def size_bytes(self) -> int:
        """The memory it takes.

        Raises:
            InputError: its shape or dtype is not known.
        """
        if self.shape is None or OPEN in self.shape or self.dtype not in _BYTES:
            raise InputError(
                f"the bytes of tensor {self.name!r} cannot be counted: shape {self.shape}, dtype {self.dtype!r}; "
                "count those of a file with static shapes (dynamic_batch=False)"
            )
        return prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class ExecutedOp:
    """An operation that a runtime executes: a node of its optimized graph, or a kernel.

    Args:
        name: the runtime's.
        kind: the runtime's word for the operator or kernel ("QLinearConv", "Convolution", "correlation").
        inputs, outputs: activations, without stored weights, scales and other constants.
        fused: names of the nodes of the file that it computes, where the runtime tells.
    """

    name: str
    kind: str
    inputs: tuple[OpTensor, ...]
    outputs: tuple[OpTensor, ...]
    fused: tuple[str, ...] = ()

    @property
    def input_dtypes(self) -> tuple[str, ...]:
        """The dtypes of the activations it reads."""
        return tuple(tensor.dtype for tensor in self.inputs)

    @property
    def output_dtypes(self) -> tuple[str, ...]:
        """The dtypes of the activations it writes."""
        return tuple(tensor.dtype for tensor in self.outputs)


@dataclass(frozen=True)
class OpTime:
    """How long an operation takes by itself: the median over runs, in milliseconds, by the runtime's own clock."""

    name: str
    ms: float


def count_kinds(ops: Iterable[ExecutedOp]) -> Counter[str]:
    """Return how many operations there are of each kind."""
    return Counter(op.kind for op in ops)


def traffic_mb(ops: Iterable[ExecutedOp]) -> float:
    """Return the megabytes (10^6) of activations that the operations read and write.

    Raises:
        InputError: a shape or dtype is not known.
    """
    return sum(tensor.size_bytes for op in ops for tensor in op.inputs + op.outputs) / 1e6
