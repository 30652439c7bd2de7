"""Recurrent layers as ONNX LSTM, GRU and RNN: their operators have the layout of ONNX already."""

from collections.abc import Callable
from typing import Any

from onnxscript.values import Opset

from fxq.export.translate_dynamic import direction_of
from fxq.quant.recurrent_ops import GRU_LAYER, LSTM_LAYER, RNN_LAYER


def recurrent_translations(op: Opset) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translations of the layers that compute in float."""

    def lstm_layer(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any, c0: Any) -> Any:
        return op.LSTM(x, weight, recurrent, bias, None, h0, c0, **_sizes(recurrent))

    def gru_layer(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any) -> Any:
        return op.GRU(x, weight, recurrent, bias, None, h0, linear_before_reset=1, **_sizes(recurrent))

    def rnn_layer(x: Any, weight: Any, recurrent: Any, bias: Any, h0: Any, nonlinearity: str) -> Any:
        activations = [nonlinearity.capitalize()] * recurrent.shape[0]
        return op.RNN(x, weight, recurrent, bias, None, h0, activations=activations, **_sizes(recurrent))

    return {LSTM_LAYER: lstm_layer, GRU_LAYER: gru_layer, RNN_LAYER: rnn_layer}


def _sizes(recurrent: Any) -> dict[str, Any]:
    directions, _, hidden = recurrent.shape
    return {"hidden_size": hidden, "direction": direction_of(directions)}
