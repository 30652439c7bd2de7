"""Lower an embedding: the rows are looked up as integers, and only what was looked up is dequantized.

``rows = table[indices] * step[indices]``: ONNX DequantizeLinear has no scale for each row of what a Gather returns, so
that the product is written as such. ONNX has no Gather of 4-bit integers either: where the target packs them, a byte of
the table holds two, ``(first + 8) + 16 * (second + 8)``, which are taken apart behind the look-up.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from fxq import GraphError, lowers
from fxq.nn import QParams, QuantEmbedding
from fxq_passes.lowering.qdq import Lowering, is_on
from fxq_passes.lowering.stored_weights import bits_of, integer_codes


@lowers(QuantEmbedding)
class LowerEmbedding:
    """Look rows up in a stored integer table."""

    def why_not(self, node: Node, module: Any) -> str | None:
        """Return that the table changes as it is read, if so."""
        if module.max_norm is not None:
            return (
                "max_norm changes the table as it is read, which a file cannot hold: apply it once and set it to None"
            )
        return None

    def lower(self, lowering: Lowering, node: Node, layer: QuantEmbedding) -> None:
        """Replace a call of ``layer`` by a look-up.

        Raises:
            GraphError: the table has a format that cannot be looked up.
        """
        indices = node.args[0] if node.args else node.kwargs["input"]
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        # A table that is also the weight of a linear layer is stored once.
        path = f"{lowering.stored.setdefault((id(layer.weight), id(quantizer)), str(node.target))}.weight"
        if not is_on(quantizer):
            table = lowering.rw.read_tensor(node, path, weight)
            lowering.rw.call_instead(node, functional.embedding, (indices, table), {}, "look-up in a stored table")
            return
        found = quantizer.qparams()
        if found.block_size is not None or bits_of(found) is None:
            raise GraphError(
                f"{node.target!r} (QuantEmbedding): in ONNX a table has one symmetric integer range per row, column or "
                f"tensor, not {quantizer.descriptor}: give its rule a weight descriptor such as QuantDescriptor(axis=0)"
            )
        look_up = _LookUp(lowering, node, indices, path)
        lowering.rw.replace_by(node, look_up.write(weight, found), "look-up in a stored integer table")


@dataclass
class _LookUp:
    """Writes the nodes of one look-up."""

    lowering: Lowering
    node: Node
    indices: Any
    path: str

    def write(self, weight: Tensor, found: QParams) -> Node:
        """Return the node of the dequantized rows, (..., columns)."""
        codes, place = integer_codes(weight, found), self.path
        if bits_of(found) == 4 and 4 in self.lowering.rw.target.formats.packed_bits:
            place += "_packed"  # what else may read this table packs it in another way
            values = self._unpacked(self._stored(place, _packed(codes)), codes.shape[1], weight.dtype)
        else:
            values = self._insert("to", self._rows(self._stored(place, codes)), weight.dtype)
        scale = self._stored(f"{place}_scale", found.scale.to(weight.dtype))
        if found.axis in (0, -2) and found.scale.dim():
            scale = self._rows(self._insert("unsqueeze", scale, 1))
        return self._insert(torch.mul, values, scale)

    def _unpacked(self, table: Node, columns: int, dtype: torch.dtype) -> Node:
        both = self._insert("to", self._rows(table), dtype)
        # Floats hold a byte exactly, in every dtype; translations of bit operations to ONNX differ.
        second = self._insert(torch.floor, self._insert(torch.mul, both, 1 / 16))
        first = self._insert(torch.sub, both, self._insert(torch.mul, second, 16))
        pairs = self._insert(torch.stack, [first, second], -1)
        values = self._insert(torch.sub, self._insert("flatten", pairs, -2), 8)
        return values if columns % 2 == 0 else self._insert("narrow", values, -1, 0, columns)

    def _rows(self, table: Node) -> Node:
        return self._insert(functional.embedding, self.indices, table)

    def _stored(self, place: str, tensor: Tensor) -> Node:
        return self.lowering.rw.read_tensor(self.node, place, tensor)

    def _insert(self, function: Any, *args: Any) -> Node:
        return self.lowering.rw.insert_call(self.node, function, args, like=self.node)


def _packed(codes: Tensor) -> Tensor:
    """Return two codes of -8..7 in each byte, (rows, columns / 2); an odd last column gets company."""
    shifted = functional.pad(codes + 8, (0, codes.shape[1] % 2)).to(torch.uint8)
    return shifted[:, 0::2] + 16 * shifted[:, 1::2]
