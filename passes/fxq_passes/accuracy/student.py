"""A quantized model in training: stand-ins for its layers and ranges, with parameters, and a walk that runs them.

The weights of a layer are codes: ``w = (c + round(v) - z) * s`` with the codes c that it has and a latent v, in steps,
that starts at 0 and stays in [-1, 1]: no code moves at once, and none by more than one. The gradient passes the
rounding as if it were not there. A range is scaled by a factor f = exp(t): ``f * Q(x / f)`` is Q with all of its steps
f times as long, whatever its format, and the gradient of f that of a learned step: ``Q(x) - x`` inside of the range,
the bound itself where x is clipped.

Sources: Bengio et al. 2013, arXiv:1308.3432 (straight through); Esser et al. 2020, arXiv:1902.08153 (learned steps).
"""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from fxq import TensorQuantizer
from fxq.nn import WeightQuantized


class TrainedLayer:
    """Computes what a quantized layer does, with a trained bias and, where asked, trained codes.

    Args:
        layer: only read.
        deviation_c: of its outputs, for each output channel: the unit of the bias's parameter.
        trains_weight: train the codes too.

    Attributes:
        shift_c: how far the bias moved, in deviations: (channels,).
        latent: how far the codes moved, in steps, in the shape of the weight; None where they are not trained.
    """

    def __init__(self, layer: WeightQuantized, deviation_c: Tensor, trains_weight: bool) -> None:
        self._layer, self._deviation_c = layer, deviation_c
        self._function, self._options = layer.as_function()
        self._pad = layer.padding_before()
        bias: Any = layer.bias
        self._bias_c = torch.zeros_like(deviation_c) if bias is None else bias.detach().float()
        self._weight = layer.quantized_weight().detach()
        self._grid = weight_grid(layer) if trains_weight else None
        self.shift_c = nn.Parameter(torch.zeros_like(deviation_c))
        self.latent: nn.Parameter | None = None
        if self._grid is not None:
            scale, zero_point, lo, hi = self._grid
            self._codes = (torch.round(self._weight.float() / scale) + zero_point).clamp(lo, hi)
            self.latent = nn.Parameter(torch.zeros_like(self._codes))

    def __call__(self, input: Tensor) -> Tensor:
        """Return the outputs for ``input``, as trained so far."""
        quantizer = self._layer.input_quantizer
        read = input if quantizer is None else quantizer(input)
        padded = read if self._pad is None else F.pad(read, **self._pad)
        return self._function(padded, self.weight(), self.bias(), **self._options)

    def bias(self) -> Tensor:
        """Return the bias: (channels,), in the dtype of the layer."""
        return (self._bias_c + self.shift_c * self._deviation_c).to(self._weight.dtype)

    def weight(self) -> Tensor:
        """Return the weight, on its grid."""
        if self.latent is None or self._grid is None:
            return self._weight
        scale, zero_point, _, _ = self._grid
        rounded = self.latent + (torch.round(self.latent) - self.latent).detach()
        return ((self._codes + rounded - zero_point) * scale).to(self._weight.dtype)

    @torch.no_grad()
    def keep_in_bounds(self) -> None:
        """Clamp the latent to one step, and to the codes that there are."""
        if self.latent is not None and self._grid is not None:
            lo, hi = self._grid[2:]
            self.latent.copy_(self.latent.clamp(-1, 1).clamp(lo - self._codes, hi - self._codes))

    @property
    def moved(self) -> int:
        """How many codes are other than they were."""
        return 0 if self.latent is None else int((torch.round(self.latent.detach()) != 0).sum())


class TrainedRange:
    """Computes what a quantizer does, with a trained factor of its range."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        self._quantizer = quantizer
        self.log_factor = nn.Parameter(torch.zeros((), device=quantizer.range[1].device))

    def __call__(self, input: Tensor) -> Tensor:
        """Return ``input``, quantized with the range as trained so far."""
        factor = torch.exp(self.log_factor)
        outputs: Tensor = self._quantizer(input.float() / factor) * factor  # half precision would round the factor to 1
        return outputs.to(input.dtype)

    @property
    def factor(self) -> float:
        """What the range is multiplied by."""
        return float(self.log_factor.detach().exp())


StandIn = TrainedLayer | TrainedRange


class Walk(Interpreter):
    """Runs a graph with stand-ins for some of its modules, and notes what some of its nodes compute.

    Args:
        gm: only read.
        stand_ins: by path of the module.
        noted: the nodes.

    Attributes:
        values: what the nodes computed in the last run.
    """

    def __init__(self, gm: GraphModule, stand_ins: Mapping[str, StandIn], noted: Collection[Node]) -> None:
        super().__init__(gm)
        self._gm, self._stand_ins, self._noted = gm, stand_ins, frozenset(noted)
        self.values: dict[Node, Tensor] = {}

    def outputs(self, inputs: Any) -> Any:
        """Return what the model returns for ``inputs``, (args, kwargs) of a call."""
        self.values = {}
        bound = inspect.signature(self._gm.forward).bind(*inputs.args, **inputs.kwargs)
        bound.apply_defaults()
        return self.run(*bound.arguments.values(), enable_io_processing=False)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the stand-in, or the module where it has none."""
        stand_in = self._stand_ins.get(target)
        return super().call_module(target, args, kwargs) if stand_in is None else stand_in(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        """Run a node, and note its value."""
        value = super().run_node(n)
        if n in self._noted:
            self.values[n] = value
        return value


def weight_grid(layer: WeightQuantized) -> tuple[Tensor, Tensor, int, int]:
    """Return scale and zero point of a weight, which broadcast against it, and its lowest and highest code."""
    qparams, weight = layer.weight_quantizer.qparams(), layer.weight
    scale, zero_point = qparams.scale, qparams.zero_point.float()
    shape = [1] * weight.dim()
    if qparams.block_size is not None:
        scale, zero_point = (
            one.repeat_interleave(qparams.block_size, 1)[:, : weight.shape[1]] for one in (scale, zero_point)
        )
        shape[:2] = scale.shape
    elif qparams.axis is not None:
        shape[qparams.axis] = -1
    return scale.reshape(shape), zero_point.reshape(shape), qparams.lo, qparams.hi
