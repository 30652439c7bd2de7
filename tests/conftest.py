"""Fixtures that several test folders share; what takes long is made once per session."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: before torch is imported, it asks for its threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support.exports import Exports
from support.models import Digits, train_digits


@pytest.fixture(scope="session")
def digits() -> Digits:
    """A ResNet trained on real digits; do not modify it."""
    return train_digits()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """ONNX files of torchvision models by name, recipe and size."""
    return Exports(tmp_path_factory.mktemp("exports"))
