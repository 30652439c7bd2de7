"""A narrow network trained on real digits: 4-bit weights cost it accuracy, and it trains in a second."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "qat_digits.py"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these train many times faster on one thread, where others compute beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def narrow(one_thread: None) -> dict[str, Any]:
    """The names of examples/qat_digits.py, and "model", "training" and "test"; do not modify the model."""
    names = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    images, labels = names["digits"]()
    names |= {"training": (images[:2000], labels[:2000]), "test": (images[4000:], labels[4000:])}
    names["model"] = names["network"]()
    names["train"](names["model"], *names["training"], epochs=3, learning_rate=1e-2)
    return names
