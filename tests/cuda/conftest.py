"""The GPU, where there is one. This folder needs torch, numpy, pytest and fxq, and nothing else of the project."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> None:
    """Switch TensorFloat-32 off: it rounds the factors of a product to 10 bits, and nothing could be compared."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def gpu() -> torch.device:
    """The first GPU; a machine without one skips the test, visibly."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here: run `bash .ci/cuda` on a machine with one")
    return torch.device("cuda", 0)
