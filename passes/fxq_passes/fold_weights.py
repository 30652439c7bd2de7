"""Weights that are computed from stored tensors alone are computed once, and stored."""

from dataclasses import dataclass

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq_passes.folding.computed_weights import fold_computed, weight_expressions


@register_pass("fold_weights")
@dataclass(frozen=True)
class FoldWeights(Pass):
    """Store the weights that hooks, parametrizations or the model's own code compute, unless they will be trained.

    Hooks are those of ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune``; the model's own code is such as
    ``F.conv2d(x, self.weight * self.scale)``.
    """

    stage = Stage.NORMALIZED
    tolerance = EXACT

    def run(self, rw: Rewriter) -> None:
        """Compute them once; in training, say why they are not."""
        if not rw.qat:
            fold_computed(rw)
            return
        for expression in weight_expressions(rw):
            for reader, name in expression.readers:
                rw.skip(
                    reader,
                    f"its {name} is computed from {expression.sources} in each call, to be trained; what a "
                    "parametrization of the layer (torch.nn.utils.parametrize) computes is quantized in training too",
                )
