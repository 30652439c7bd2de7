"""The passes that come with fxq, one a file. They use the public API and load as an entry point, as any plugin does."""

from fxq_passes.attach_observers import AttachObservers
from fxq_passes.correct_bias import CorrectBias
from fxq_passes.distill import Distill
from fxq_passes.equalize_channels import EqualizeChannels
from fxq_passes.fit_ranges import FitRanges
from fxq_passes.fold_affine import FoldAffine
from fxq_passes.fold_batchnorm import FoldBatchnorm
from fxq_passes.fold_weights import FoldWeights
from fxq_passes.freeze_ranges import FreezeRanges
from fxq_passes.functional_to_module import FunctionalToModule
from fxq_passes.insert_quantizers import InsertQuantizers
from fxq_passes.lower_to_qdq import LowerToQdq
from fxq_passes.observe_ranges import ObserveRanges
from fxq_passes.plan_ops import PlanOps
from fxq_passes.plan_residual_adds import PlanResidualAdds
from fxq_passes.refine_ranges import RefineRanges
from fxq_passes.remove_dropout import RemoveDropout
from fxq_passes.remove_inplace import RemoveInplace
from fxq_passes.round_weights import RoundWeights
from fxq_passes.shift_activations import ShiftActivations
from fxq_passes.solve_scales import SolveScales
from fxq_passes.split_silu import SplitSilu
from fxq_passes.write_out import WriteOut

__all__ = [
    "AttachObservers",
    "CorrectBias",
    "Distill",
    "EqualizeChannels",
    "FitRanges",
    "FoldAffine",
    "FoldBatchnorm",
    "FoldWeights",
    "FreezeRanges",
    "FunctionalToModule",
    "InsertQuantizers",
    "LowerToQdq",
    "ObserveRanges",
    "PlanOps",
    "PlanResidualAdds",
    "RefineRanges",
    "RemoveDropout",
    "RemoveInplace",
    "RoundWeights",
    "ShiftActivations",
    "SolveScales",
    "SplitSilu",
    "WriteOut",
]
