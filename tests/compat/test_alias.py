"""install_alias: scripts import pytorch_quantization and get fxq.compat."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

from fxq.compat import install_alias
from fxq.compat import pytorch_quantization as compat
from fxq.errors import CompatError


def test_every_module_of_compat_is_found_under_the_original_name() -> None:
    inner = [found.name for found in pkgutil.walk_packages(compat.__path__, f"{compat.__name__}.")]

    with install_alias():
        for name in inner:
            alias = importlib.import_module(name.removeprefix("fxq.compat."))
            assert alias is importlib.import_module(name)
    assert len(inner) > 20


def test_imports_of_the_original_run_in_a_fresh_process() -> None:
    script = """
from fxq.compat import install_alias
install_alias()
import pytorch_quantization
import pytorch_quantization.nn as quant_nn
import pytorch_quantization.utils as quant_utils
from pytorch_quantization import calib, cuda_ext, quant_modules, tensor_quant
from pytorch_quantization.calib.calibrator import _Calibrator
from pytorch_quantization.calib.histogram import calibrate_weights
from pytorch_quantization.nn import functional
from pytorch_quantization.nn.modules import _utils, clip, quant_conv, quant_linear, quant_pooling, quant_rnn
from pytorch_quantization.nn.modules.quant_instancenorm import QuantInstanceNorm2d
from pytorch_quantization.nn.modules.tensor_quantizer import TensorQuantizer
from pytorch_quantization.optim import helper
from pytorch_quantization.tensor_quant import QuantDescriptor
from pytorch_quantization.utils import quant_logging
assert quant_nn.TensorQuantizer is TensorQuantizer
print(pytorch_quantization.__version__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "2.2.1"


def test_the_alias_ends_with_its_with_statement() -> None:
    with install_alias():
        assert "pytorch_quantization.nn" in sys.modules
    assert not [name for name in sys.modules if name.startswith("pytorch_quantization")]


def test_an_inner_alias_leaves_the_outer_one() -> None:
    with install_alias():
        with install_alias():
            pass
        assert "pytorch_quantization" in sys.modules


def test_the_real_package_is_not_mixed_with_compat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_quantization", ModuleType("pytorch_quantization"))

    with pytest.raises(CompatError, match="before the first import"):
        install_alias()


def test_a_name_without_an_equivalent_says_what_to_use() -> None:
    with pytest.raises(CompatError, match=r"use fxq\.nn\.QuantGRU"):
        from fxq.compat.pytorch_quantization.nn.modules.quant_rnn import GRU  # noqa: F401
