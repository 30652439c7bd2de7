"""Quantized LSTM and LSTMCell, grouped as pytorch-quantization does it: one product a time step.

Input and hidden state are quantized together, as ``[x, h]``, and so are their weights, as ``[W_ih, W_hh]``: one input
and one weight quantizer for each layer and direction. The projection of ``proj_size``, which the original refuses,
stays float. GRU and RNN, broken in the original, are ``fxq.nn.QuantGRU`` and ``fxq.nn.QuantRNN``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxq import nn
from fxq.compat.pytorch_quantization.nn.modules.compat_module import CompatModule
from fxq.compat.pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer
from fxq.compat.pytorch_quantization.tensor_quant import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW
from fxq.errors import CompatError
from fxq.nn.recurrent import directions_of
from fxq.nn.recurrent_steps import STEPS, State
from fxq.quant.descriptor import QuantDescriptor

__all__ = ["LSTM", "LSTMCell", "QuantLSTM", "QuantLSTMCell"]

_BETTER = {
    "QuantRNN": "fxq.nn.QuantRNN",
    "GRU": "fxq.nn.QuantGRU",
    "QuantRNNCell": "fxq.nn.QuantRNNCell",
    "GRUCell": "fxq.nn.QuantGRUCell",
    "QuantRNNBase": "fxq.nn.QuantLSTM",
    "QuantRNNCellBase": "fxq.nn.QuantLSTMCell",
}


class _Grouped(CompatModule):
    """No quantizers by the names of single tensors; put it before fxq's module."""

    default_quant_desc_weight = QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW

    @classmethod
    def activation_slots(cls, module: Any) -> list[str]:
        """Return the one name of all that is quantized and is not a weight."""
        return ["input"]

    @classmethod
    def weight_slots(cls, module: Any) -> list[str]:
        """Return the one name of all weights."""
        return ["weight"]

    def weights(self) -> Iterator[Any]:
        """Yield nothing: no single parameter is quantized."""
        yield from ()

    def _quantized(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def activations(self) -> Iterator[tuple[str, Any]]:
        """Yield name and quantizer of what is quantized and is not a weight."""
        for name, module in self.named_modules():
            if isinstance(module, TensorQuantizer) and name.startswith("_input_quantizer"):
                yield name, module


class QuantLSTM(_Grouped, nn.QuantLSTM):
    """torch.nn.LSTM with ``_input_quantizers`` and ``_weight_quantizers``, one each for a layer and direction."""

    def _add_quantizers(self, descriptors: Mapping[str, QuantDescriptor | None]) -> None:
        pair = (descriptors["input"] or self.default_quant_desc_input, descriptors["weight"])
        self.init_quantizer(*pair, num_layers=len(directions_of(self)))  # type: ignore[arg-type]

    def _run_direction(self, name: str, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        index = directions_of(self).index(name)
        into, hidden = getattr(self, f"weight_ih_{name}"), getattr(self, f"weight_hh_{name}")
        weights = self._weight_quantizers[index](torch.cat([into, hidden], 1)).split(
            [into.shape[1], hidden.shape[1]], 1
        )
        biases = [getattr(self, f"bias_{kind}_{name}") if self.bias else None for kind in ("ih", "hh")]
        outputs: list[Tensor] = []
        is_reverse = name.endswith("_reverse")
        steps = torch.split(data, sizes)
        for step in reversed(steps) if is_reverse else steps:
            rows = step.shape[0]
            active = tuple(tensor[:rows] for tensor in state)
            new = _lstm(self._input_quantizers[index], step, active, weights, biases)
            if self.proj_size:
                new = (functional.linear(new[0], getattr(self, f"weight_hr_{name}")), new[1])
            outputs.append(new[0])
            # Sequences that ended (or, backwards, have not begun) keep their state.
            state = tuple(torch.cat([now, then[rows:]]) for now, then in zip(new, state, strict=True))
        return torch.cat(outputs[::-1] if is_reverse else outputs), state


class QuantLSTMCell(_Grouped, nn.QuantLSTMCell):
    """torch.nn.LSTMCell with one quantizer for ``[x, h]`` and one for ``[W_ih, W_hh]``."""

    def _add_quantizers(self, descriptors: Mapping[str, QuantDescriptor | None]) -> None:
        self.init_quantizer(descriptors["input"] or self.default_quant_desc_input, descriptors["weight"])  # type: ignore[arg-type]

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Return the new (hidden, cell); batched or not, as the float module does."""
        if input.dim() == 1:
            state = None if hx is None else tuple(tensor.unsqueeze(0) for tensor in hx)
            return tuple(tensor.squeeze(0) for tensor in self.forward(input.unsqueeze(0), state))
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.hidden_size)
            hx = (zeros, zeros)
        weights = self._weight_quantizer(torch.cat([self.weight_ih, self.weight_hh], 1))
        split = weights.split([self.input_size, self.hidden_size], 1)
        return _lstm(self._input_quantizer, input, tuple(hx), split, [self.bias_ih, self.bias_hh])


LSTM = QuantLSTM
LSTMCell = QuantLSTMCell


def _lstm(quantizer: Any, inputs: Tensor, state: State, weights: Any, biases: list[Tensor | None]) -> State:
    """Return the new (h, c), with inputs and hidden state quantized as one tensor."""
    widths = [inputs.shape[1], state[0].shape[1]]
    inputs, hidden = quantizer(torch.cat([inputs, state[0]], 1)).split(widths, 1)
    from_input = functional.linear(inputs, weights[0], biases[0])
    return STEPS["LSTM"](from_input, functional.linear(hidden, weights[1], biases[1]), state)


def __getattr__(name: str) -> Any:
    if name in _BETTER:
        raise CompatError(f"{name} does not work in pytorch-quantization and is not in fxq.compat: use {_BETTER[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
