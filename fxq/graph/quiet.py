"""torch.export and torch.onnx, silent: they log what is missing and warn about their own doings."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._subclasses", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Drop warnings, and log errors only.

    All warnings: torch also warns from C++ and in the name of the code that it traces. What the model itself has to
    say, it says where it runs.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
