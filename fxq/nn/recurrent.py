"""Quantized LSTM, GRU and RNN, with every option of torch.nn's: layers, directions, projection, packed sequences.

Per layer: one quantizer on the input, one on the hidden state of each direction, one on each weight. The gates and
the cell state stay float. The loop over time is Python's, so a long sequence is slower than torch's kernel.

Source of the formulas: torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from fxq.nn.quantized_layer import ManyQuantized
from fxq.nn.recurrent_steps import STEPS, State


class _QuantRecurrent(ManyQuantized, nn.RNNBase):
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return (output, hidden) as the float module does, for a tensor or a PackedSequence."""
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, inverse = input
            state = self._initial_state(data, hx, batch_sizes, order)
            outputs, state = self._run(data, batch_sizes.tolist(), state)
            return PackedSequence(outputs, batch_sizes, order, inverse), self._hidden(state, inverse)
        is_batched = input.dim() != 2
        if not is_batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else _each(hx, lambda tensor: tensor.unsqueeze(1))
        state = self._initial_state(input, hx, None, None)
        steps = input.transpose(0, 1) if self.batch_first else input  # (time, batch, features)
        outputs, state = self._run(steps.flatten(0, 1), [steps.shape[1]] * steps.shape[0], state)
        outputs = outputs.reshape(*steps.shape[:2], outputs.shape[-1])
        outputs = outputs.transpose(0, 1) if self.batch_first else outputs
        if is_batched:
            return outputs, self._hidden(state, None)
        squeezed = tuple(tensor.squeeze(1) for tensor in state)
        return outputs.squeeze(0 if self.batch_first else 1), self._hidden(squeezed, None)

    def _initial_state(self, data: Tensor, hx: Any, batch_sizes: Tensor | None, order: Tensor | None) -> State:
        """Return (h,) or (h, c), each (layers * directions, batch, size), in the order of the packed batch."""
        if hx is None:
            batch = int(batch_sizes[0]) if batch_sizes is not None else data.shape[0 if self.batch_first else 1]
            sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
            layers = self.num_layers * self._directions
            zeros = tuple(data.new_zeros(layers, batch, size) for size in sizes)
            hx = zeros if self.mode == "LSTM" else zeros[0]
            order = None
        # torch's own checks and messages.
        hx = self.permute_hidden(hx, order)
        self.check_forward_args(data, hx, batch_sizes)
        return hx if isinstance(hx, tuple) else (hx,)

    def _hidden(self, state: State, inverse: Tensor | None) -> Any:
        hidden: Any = state if self.mode == "LSTM" else state[0]
        return self.permute_hidden(hidden, inverse)

    def _run(self, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """Run all layers; ``data`` holds sizes[t] rows for each time step t, longest sequences first."""
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                data = functional.dropout(data, self.dropout, self.training)
            data = self._quantized(f"input_l{layer}", data)
            outputs = []
            for direction in range(self._directions):
                initial = tuple(tensor[layer * self._directions + direction] for tensor in state)
                name = f"l{layer}{'_reverse' if direction else ''}"
                output, final = self._run_direction(name, data, sizes, initial)
                outputs.append(output)
                finals.append(final)
            data = torch.cat(outputs, 1)
        return data, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def _run_direction(self, name: str, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        parameters = dict(self.named_parameters(recurse=False))
        from_input = functional.linear(data, self._weight(f"weight_ih_{name}"), parameters.get(f"bias_ih_{name}"))
        recurrent, bias = self._weight(f"weight_hh_{name}"), parameters.get(f"bias_hh_{name}")
        projection = self._weight(f"weight_hr_{name}") if self.proj_size else None
        step = STEPS[self.mode]
        gates = torch.split(from_input, sizes)
        outputs: list[Tensor] = []
        is_reverse = name.endswith("_reverse")
        for gate in reversed(gates) if is_reverse else gates:
            rows = gate.shape[0]
            active = tuple(tensor[:rows] for tensor in state)
            from_hidden = functional.linear(self._quantized(f"hidden_{name}", active[0]), recurrent, bias)
            new = step(gate, from_hidden, active)
            if projection is not None:
                projected = functional.linear(self._quantized(f"projected_{name}", new[0]), projection)
                new = (projected, *new[1:])
            outputs.append(new[0])
            # Sequences that ended (or, backwards, have not begun) keep their state.
            state = tuple(torch.cat([now, then[rows:]]) for now, then in zip(new, state, strict=True))
        return torch.cat(outputs[::-1] if is_reverse else outputs), state

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @classmethod
    def activation_slots(cls, module: nn.Module) -> list[str]:
        """Return the input of each layer, and the hidden (and projected) state of each direction."""
        inputs = [f"input_l{layer}" for layer in range(module.num_layers)]  # type: ignore[arg-type]
        kinds = ("hidden", "projected") if module.proj_size else ("hidden",)
        return inputs + [f"{kind}_{name}" for name in directions_of(module) for kind in kinds]

    @classmethod
    def weight_slots(cls, module: nn.Module) -> list[str]:
        """Return the weights of each layer and direction."""
        kinds = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
        return [f"weight_{kind}_{name}" for name in directions_of(module) for kind in kinds]


class QuantLSTM(_QuantRecurrent, nn.LSTM):
    """torch.nn.LSTM with quantized inputs, hidden states and weights."""


class QuantGRU(_QuantRecurrent, nn.GRU):
    """torch.nn.GRU with quantized inputs, hidden states and weights."""


class QuantRNN(_QuantRecurrent, nn.RNN):
    """torch.nn.RNN with quantized inputs, hidden states and weights."""


def directions_of(module: Any) -> list[str]:
    """Return the suffix that torch gives the parameters of each layer and direction."""
    suffixes = ["", "_reverse"] if module.bidirectional else [""]
    return [f"l{layer}{suffix}" for layer in range(module.num_layers) for suffix in suffixes]


def _each(hx: Any, function: Any) -> Any:
    return tuple(function(tensor) for tensor in hx) if isinstance(hx, tuple) else function(hx)
