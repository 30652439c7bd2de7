"""Fixtures that several test folders share; what takes long is made once per session."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: before torch is imported, it asks for its threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

# torch and what comes with it is imported by the workers alone: the process that starts them waits for nothing.
if TYPE_CHECKING:
    from support.exports import Exports
    from support.models import Digits


@pytest.fixture(scope="session", autouse=True)
def torchlib() -> Iterator[None]:
    """Let torch.onnx.export parse the source of its 500 functions once a session: 0.3 s of CPU in each export."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    @cache
    def get_torchlib_ops() -> Any:
        return importlib.import_module(onnxscript_apis._name).get_torchlib_ops()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(onnxscript_apis), "get_torchlib_ops", get_torchlib_ops)
        yield


@pytest.fixture(scope="session")
def digits() -> "Digits":
    """A ResNet trained on real digits; do not modify it."""
    from support.models import train_digits

    return train_digits()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> "Exports":
    """ONNX files of torchvision models by name, recipe and size."""
    from support.exports import Exports

    return Exports(tmp_path_factory.mktemp("exports"))
