"""Functions of quantized modules."""

import torch
from torch import Tensor

from fxq.quant.learned import learned_clip


def clip(input: Tensor, clip_value_min: Tensor | float, clip_value_max: Tensor | float) -> Tensor:
    """Return ``input`` clipped; each bound gets the summed gradient of what it clips (PACT).

    The bounds broadcast against ``input``; an element on a bound counts as clipped.
    """
    bounds = (torch.as_tensor(bound, device=input.device) for bound in (clip_value_min, clip_value_max))
    return learned_clip(input, *bounds)


class ClipFunction:
    """``apply`` is :func:`clip`."""

    apply = staticmethod(clip)
