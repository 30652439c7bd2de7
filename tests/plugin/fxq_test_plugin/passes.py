"""The passes of the plugin."""

from dataclasses import dataclass

import torch

import fxq
from fxq.graph import kind


@fxq.register_pass("drop_softmax")
@dataclass(frozen=True)
class DropSoftmax(fxq.Pass):
    """Let the model return its logits: a softmax at the end goes."""

    stage = fxq.Stage.NORMALIZED
    tolerance = fxq.ANY

    def run(self, rw: fxq.Rewriter) -> None:
        """Bypass a softmax that only the output reads."""
        for node in rw.nodes(lambda node: kind(node) == "softmax"):
            if all(user.op == "output" for user in node.users):
                rw.bypass(node, "the caller takes logits")
            else:
                rw.skip(node, "it is read inside of the model")


@fxq.register_pass("leave_dead_node")
@dataclass(frozen=True)
class LeaveDeadNode(fxq.Pass):
    """Break the rules of the stage."""

    stage = fxq.Stage.NORMALIZED

    def run(self, rw: fxq.Rewriter) -> None:
        """Insert a call that nothing reads."""
        output = rw.gm.graph.output_node()
        source = output.all_input_nodes[0]
        rw.insert_call(output, torch.neg, (source,), like=source)
