"""A value that follows train() and eval()."""

from typing import Any

from torch import nn


class ByMode(nn.Module):
    """Returns one value in training and another one else, as ``self.training`` does.

    Args:
        evaluation: the value in evaluation.
        training: the value in training.
    """

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.in_training = training

    def forward(self) -> Any:
        """Return the value for the mode that the module is in."""
        return self.in_training if self.training else self.evaluation

    def extra_repr(self) -> str:
        """Return both values."""
        return f"{self.evaluation!r}, training={self.in_training!r}"
