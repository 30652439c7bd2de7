"""An example input where there is no calibration data: random numbers of a given shape."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxq.cli.images import ImageOptions
from fxq.cli.models import ModelSource
from fxq.errors import ModelError

_SAMPLES = 2


@dataclass(frozen=True)
class ExampleSource:
    """What the command line says about inputs.

    Args:
        shape: of the model's one input; None for images, where the model comes from a library of image models.
        images: their size and channels.
    """

    shape: tuple[int, ...] | None
    images: ImageOptions

    def make(self, source: ModelSource, model: nn.Module) -> tuple[Tensor, ...]:
        """Return an example input for ``model``, the same in every run.

        Raises:
            ModelError: nothing tells its shape.
        """
        shape = self.shape
        if shape is None and source.is_image_model:
            shape = (_SAMPLES, len(self.images.mean), self.images.size, self.images.size)
        if shape is None:
            raise ModelError(
                f"the file is written, and checked, with an input for {type(model).__name__}: give --input-shape such "
                "as 1,3,224,224, or inputs of any kind with --calib-data"
            )
        dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype),)
