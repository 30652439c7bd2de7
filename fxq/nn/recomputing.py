"""Gradient checkpointing runs a call again, in the backward pass: it must compute the same, and count nothing twice."""

import torch


def is_recomputing() -> bool:
    """Does gradient checkpointing repeat a call? False while torch.compile traces, which repeats operations itself."""
    # torch.utils.checkpoint asks the same; there is no public question.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
