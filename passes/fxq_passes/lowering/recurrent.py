"""Lower LSTM, GRU and RNN: one operator a layer, in the layout of ONNX, on stored integer weights.

Gates are put into the order of ONNX by permuting the rows of codes and scales, so that nothing is quantized anew. With
dynamic ranges an LSTM layer becomes DYNAMIC_LSTM_LAYER, which computes on integers; else the layers compute in float on
the dequantized weights.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxq import GraphError, TensorQuantizer, lowers
from fxq.graph import module_of, shape_of
from fxq.nn import QParams, QuantGRU, Quantized, QuantLSTM, QuantRNN
from fxq.quant import DYNAMIC_LSTM_LAYER, GRU_LAYER, LSTM_LAYER, RNN_LAYER
from fxq_passes.lowering.qdq import Lowering, is_on
from fxq_passes.lowering.stored_weights import integer_codes, is_linear_weight, select_rows

Recurrent = QuantLSTM | QuantGRU | QuantRNN | nn.LSTM | nn.GRU | nn.RNN

# torch's gates in the order of ONNX. LSTM: input, forget, cell, output -> input, output, forget, cell.
# GRU: reset, update, new -> update, reset, new.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


@lowers(QuantLSTM, QuantGRU, QuantRNN)
class LowerRecurrent:
    """Write one operator for each layer."""

    def why_not(self, node: Node, module: Any) -> str | None:
        """Return that no operator computes it: a projection, or a packed sequence."""
        if module.proj_size:
            return "the recurrent operators of ONNX have no projection: use proj_size=0, or leave it in float"
        value = node.all_input_nodes[0].meta.get("val")
        if value is not None and not isinstance(value, Tensor):
            return "the recurrent operators take tensors, not packed sequences: pad them, or leave it in float"
        return None

    def lower(self, lowering: Lowering, node: Node, layer: Recurrent) -> None:
        """Replace a call of ``layer`` by its operators.

        Raises:
            GraphError: it has ranges of hidden states that were fixed by calibration.
        """
        call = _Call(lowering, node, layer, _is_dynamic(node, layer))
        value = call.write()
        on = "stored integer weights, computed in float" if isinstance(layer, Quantized) else "float weights"
        on = "integers, with ranges found as it runs" if call.is_dynamic else on
        lowering.rw.replace_by(node, value, f"layers on {on}")
        lowering.rw.erase_unread(call.created)


def lower_float(lowering: Lowering) -> None:
    """Write the operators of recurrent modules that are left in float; torch.onnx would write each of their steps."""
    lower = LowerRecurrent()
    calls = [(node, lowering.rw.module(node)) for node in lowering.rw.nodes(_is_float_recurrent)]
    for node, _ in calls:
        lowering.rw.empty_module(str(node.target))
    for node, layer in calls:
        lower.lower(lowering, node, layer)


def _is_float_recurrent(node: Node) -> bool:
    """Return whether ``node`` calls a module of torch.nn that ONNX Runtime has an operator for, on a known tensor."""
    if node.op != "call_module" or type(module_of(node)) not in (nn.LSTM, nn.GRU, nn.RNN):
        return False
    layer: Any = module_of(node)
    value = node.all_input_nodes[0].meta.get("val")
    # ONNX Runtime's operators compute in float32 alone.
    is_known = isinstance(value, Tensor) and value.dtype is torch.float32
    return is_known and not (layer.proj_size or layer._forward_hooks or layer._forward_pre_hooks)


@dataclass
class _Call:
    """Writes the operators of one call of a recurrent module."""

    lowering: Lowering
    node: Node
    layer: Recurrent
    is_dynamic: bool
    created: list[Node] = field(default_factory=list)
    zeros: Node | None = None  # the initial state of each layer for which none is given

    def write(self) -> Any:
        """Insert all nodes; return (output, hidden) as torch does."""
        x, states = self._inputs()
        is_batched = len(shape_of(self._argument(0, "input")) or (0, 0, 0)) == 3
        if not is_batched:
            x = self._insert("unsqueeze", x, 1)
            states = [state and self._insert("unsqueeze", state, 1) for state in states]
        elif self.layer.batch_first:
            x = self._insert("transpose", x, 0, 1)
        finals: list[list[Node]] = []
        for index in range(self.layer.num_layers):
            initial = [self._initial(state, index, x) for state in states]
            outputs = self._layer(index, x, initial)
            items = [self._insert_item(outputs, item) for item in range(1 + len(states))]
            # (time, directions, batch, size) -> (time, batch, directions * size)
            x = self._insert("flatten", self._insert("transpose", items[0], 1, 2), 2)
            finals.append(items[1:])
        hidden = [self._joined(list(parts)) for parts in zip(*finals, strict=True)]
        if not is_batched:
            x, hidden = self._insert("squeeze", x, 1), [self._insert("squeeze", state, 1) for state in hidden]
        elif self.layer.batch_first:
            x = self._insert("transpose", x, 0, 1)
        return (x, tuple(hidden)) if self._is_lstm else (x, hidden[0])

    @property
    def _is_lstm(self) -> bool:
        return self.layer.mode == "LSTM"

    @property
    def _directions(self) -> int:
        return 2 if self.layer.bidirectional else 1

    def _inputs(self) -> tuple[Node, list[Node | None]]:
        """Return the sequence and the initial states: (h,) or (h, c), None for zeros."""
        x, given = self._argument(0, "input"), self._argument(1, "hx")
        if given is None:
            return x, [None, None] if self._is_lstm else [None]
        if not self._is_lstm:
            return x, [given]
        return x, [self._insert_item(given, 0), self._insert_item(given, 1)] if isinstance(given, Node) else [*given]

    def _argument(self, position: int, name: str) -> Any:
        return self.node.args[position] if len(self.node.args) > position else self.node.kwargs.get(name)

    def _initial(self, state: Node | None, index: int, x: Node) -> Node:
        """Return the initial state of one layer, (directions, batch, size)."""
        if state is None:
            self.zeros = self.zeros or self._zero_state(x)
            return self.zeros
        if self.layer.num_layers == 1:
            return state
        first = index * self._directions
        return self._insert("narrow", state, 0, first, self._directions)

    def _zero_state(self, x: Node) -> Node:
        zeros = self._parameter("weight_hh_l0").new_zeros(self._directions, 1, self.layer.hidden_size)
        stored = self.lowering.rw.read_tensor(self.node, f"{self.node.target}.zero_state", zeros)
        return self._insert("expand", stored, -1, self._insert("size", x, 1), -1)

    def _layer(self, index: int, x: Node, initial: list[Node]) -> Node:
        bias = self._bias(index)
        if self.is_dynamic:
            codes, steps = self._codes(f"weight_ih_l{index}")
            recurrent, recurrent_steps = self._codes(f"weight_hh_l{index}")
            return self._insert(DYNAMIC_LSTM_LAYER, x, codes, recurrent, steps, recurrent_steps, bias, *initial)
        weights = [self._weight(f"weight_{kind}_l{index}") for kind in ("ih", "hh")]
        if self._is_lstm:
            return self._insert(LSTM_LAYER, x, *weights, bias, *initial)
        if self.layer.mode == "GRU":
            return self._insert(GRU_LAYER, x, *weights, bias, *initial)
        return self._insert(RNN_LAYER, x, *weights, bias, *initial, self.layer.mode.removeprefix("RNN_").lower())

    def _weight(self, name: str) -> Node:
        """Return the dequantized weights of both directions, (directions, gates * size, inputs)."""
        values = []
        for suffix in self._suffixes():
            place = f"{self.node.target}.{name}{suffix}"
            weight, found = self._quantized_weight(name + suffix)
            if found is None:
                values.append(self.lowering.rw.read_tensor(self.node, place, weight))
            else:
                values.append(self.lowering.weight_value(self.node, place, weight, found, weight.dtype))
        if len(values) == 1:
            return self._insert("unsqueeze", values[0], 0)
        return self._insert(torch.stack, values)

    def _codes(self, name: str) -> tuple[Node, Node]:
        """Return the codes (directions, inputs, gates * size) and steps (directions, gates * size)."""
        codes, steps = [], []
        for suffix in self._suffixes():
            weight, found = self._quantized_weight(name + suffix)
            assert found is not None  # see _is_dynamic
            codes.append(integer_codes(weight, found).t())
            steps.append(found.scale.expand(len(weight)))
        place, rw = f"{self.node.target}.{name}", self.lowering.rw
        stored = rw.read_tensor(self.node, place, torch.stack(codes).contiguous())
        return stored, rw.read_tensor(self.node, f"{place}_scale", torch.stack(steps))

    def _quantized_weight(self, name: str) -> tuple[Tensor, QParams | None]:
        """Return a weight and its quantization with the gates in the order of ONNX."""
        weight = self._parameter(name)
        quantizer = self.layer.quantizer_of(name) if isinstance(self.layer, Quantized) else None
        rows = self._rows(weight)
        return weight[rows], select_rows(quantizer.qparams(), rows) if is_on(quantizer) else None

    def _bias(self, index: int) -> Node:
        """Return (directions, 2 * gates * size): the biases of the input, then those of the hidden state."""
        place = f"{self.node.target}.bias_l{index}"
        parts = []
        for suffix in self._suffixes():
            both = [self._gate_bias(f"bias_{kind}_l{index}{suffix}") for kind in ("ih", "hh")]
            parts.append(torch.cat(both))
        return self.lowering.rw.read_tensor(self.node, place, torch.stack(parts))

    def _gate_bias(self, name: str) -> Tensor:
        if not self.layer.bias:
            weight = self._parameter(name.replace("bias", "weight"))
            return weight.new_zeros(len(weight))
        bias = self._parameter(name)
        return bias[self._rows(bias)]

    def _parameter(self, name: str) -> Tensor:
        return self.layer.get_parameter(name).detach()

    def _rows(self, tensor: Tensor) -> Tensor:
        gates = _GATES[self.layer.mode]
        parts = torch.arange(len(tensor), device=tensor.device).chunk(len(gates))
        return torch.cat([parts[gate] for gate in gates])

    def _suffixes(self) -> list[str]:
        return ["", "_reverse"][: self._directions]

    def _joined(self, states: list[Node]) -> Node:
        return states[0] if len(states) == 1 else self._insert(torch.cat, states)

    def _insert(self, function: Any, *args: Any) -> Node:
        new = self.lowering.rw.insert_call(self.node, function, args, like=self.node)
        self.created.append(new)
        return new

    def _insert_item(self, source: Node, index: int) -> Node:
        return self._insert(operator.getitem, source, index)


def _is_dynamic(node: Node, layer: Recurrent) -> bool:
    """Return whether the ranges of inputs and hidden states are found as it runs.

    Raises:
        GraphError: they are fixed, or the layer is no LSTM of 8 bits.
    """
    if not isinstance(layer, Quantized):
        return False
    active = [quantizer for _, quantizer in layer.activations() if is_on(quantizer)]
    if not active:
        return False
    found = {(quantizer.descriptor.is_dynamic, quantizer.descriptor.symmetric) for quantizer in active}
    if (
        layer.mode == "LSTM"
        and found == {(True, False)}
        and all(_is_int8(layer.quantizer_of(slot)) for slot in layer.weight_slots(layer))
    ):
        return True
    raise GraphError(
        f"{node.target!r} ({type(layer).__name__}) quantizes its hidden state, which in ONNX only an LSTM with 8-bit "
        'weights and ranges found as it runs can do: use the recipe "dynamic", or "weight_only" (by hand: from_float '
        "with input=None), or leave it in float with a rule that says None"
    )


def _is_int8(quantizer: TensorQuantizer | None) -> bool:
    return is_on(quantizer) and is_linear_weight(quantizer.qparams())
