"""What a pass changes past the rewriter, and so without a trace in the record, is looked at all the same."""

import pytest
import torch
from torch import nn

import fxq


@fxq.register_pass("test_delete_a_module")
class DeleteAModule(fxq.Pass):
    """Takes a module from below the node that calls it."""

    stage = fxq.Stage.PREPARED

    def run(self, rw: fxq.Rewriter) -> None:
        delattr(rw.gm, "0")


def test_a_module_deleted_by_the_last_pass_of_a_stage_is_missed() -> None:
    recipe = fxq.recipe("tensorrt").with_pass("test_delete_a_module")
    with pytest.raises(fxq.PassError, match=r"pass 'test_delete_a_module' .* breaks the rules of stage 'prepared'"):
        fxq.prepare(nn.Sequential(nn.Linear(4, 3)).eval(), torch.ones(2, 4), recipe)
