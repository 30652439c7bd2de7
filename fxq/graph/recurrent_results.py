"""What recurrent layers return, in shape: running them on fake tensors would go through all time steps in Python."""

from typing import Any

import torch
from torch import Tensor, nn


def recurrent_result(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return empty tensors like those that ``module`` would return, None where only running it can tell.

    Args:
        module: any; the LSTM, GRU and RNN of torch.nn are known, without hooks.
        args, kwargs: of the call; ``input`` (time, batch, features), (batch, time, features) or (time, features).
    """
    given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    x, hx = given.get("input"), given.get("hx")
    if type(module) not in (nn.LSTM, nn.GRU, nn.RNN) or not isinstance(x, Tensor) or "forward" in vars(module):
        return None
    assert isinstance(module, nn.RNNBase)
    states = (hx,) if isinstance(hx, Tensor) else hx or ()
    fits = x.dim() in (2, 3) and x.shape[-1] == module.input_size and all(one.dim() == x.dim() for one in states)
    if not fits or module._forward_hooks or module._forward_pre_hooks:
        return None  # its own error is better than ours
    directions = 2 if module.bidirectional else 1
    projected = getattr(module, "proj_size", 0) or module.hidden_size
    batch = () if x.dim() == 2 else (x.shape[0 if module.batch_first else 1],)
    layers = module.num_layers * directions
    output = x.new_empty((*x.shape[:-1], projected * directions), dtype=_dtype(module, x))
    hidden = output.new_empty((layers, *batch, projected))
    if isinstance(module, nn.LSTM):
        return output, (hidden, output.new_empty((layers, *batch, module.hidden_size)))
    return output, hidden


def _dtype(module: nn.RNNBase, x: Tensor) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), x.dtype)
