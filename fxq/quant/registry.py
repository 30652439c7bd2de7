"""Names of calibration methods. The descriptor must know which there are, so they are kept below it.

A method is a fit: a function of a :class:`fxq.calib.Histogram` and of options of its own that returns low and high.
Those of fxq lie in ``fxq/calib/fits``; an installed package announces its own as an entry point of group ``fxq.fits``
(``name = "module:function"``), which is imported when the name is asked for; a script decorates one.
"""

import difflib
import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

from fxq.errors import CalibrationError, PluginError

GROUP = "fxq.fits"
Fit = Callable[..., tuple[float, float]]
FitType = TypeVar("FitType", bound=Fit)

fits: dict[str, Fit] = {}


def register_fit(name: str) -> Callable[[FitType], FitType]:
    """Return a decorator that makes a function the calibration method ``name``: ``@fxq.register_fit("median")``.

    The function takes a :class:`fxq.calib.Histogram`, and options by keyword with defaults. It returns low and high;
    of a symmetric histogram high is amax, and low is not looked at.

    Raises:
        PluginError: the name is taken by another function, or is none, or what is decorated is no function.
    """
    if not isinstance(name, str) or not name.replace("_", "").isalnum() or name != name.lower():
        raise PluginError(f'a calibration method is registered under a name such as "median", got {name!r}')

    def register(fit: FitType) -> FitType:
        if not callable(fit):
            raise PluginError(f"the calibration method {name!r} is no function, but {fit!r}")
        taken = fits.get(name)
        # The same definition again is a notebook cell or a module that ran twice.
        if taken is not None and _where(taken) != _where(fit):
            raise PluginError(
                f"the calibration method {name!r} is taken by {_where(taken)}, and {_where(fit)} wants it too; "
                "register one of them under another name"
            )
        fits[name] = fit
        return fit

    return register


def fit_names() -> tuple[str, ...]:
    """Return the names of all methods in order, those that installed packages announce among them."""
    return tuple(sorted(fits.keys() | importlib.metadata.entry_points(group=GROUP).names))


def is_fit(name: Any) -> bool:
    """Is there a calibration method of this name?"""
    if not isinstance(name, str):
        return False
    return name in fits or bool(importlib.metadata.entry_points(group=GROUP, name=name))


def find_fit(name: str) -> Fit:
    """Return the calibration method ``name``.

    Raises:
        CalibrationError: there is none.
        PluginError: the package that announces it does not import.
    """
    if name not in fits:
        for entry in importlib.metadata.entry_points(group=GROUP, name=name):
            register_fit(name)(_load(entry))
    if name not in fits:
        names = fit_names()
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise CalibrationError(f"unknown calibration method {name!r}; {hint}choose one of {', '.join(names)}")
    return fits[name]


def _load(entry: importlib.metadata.EntryPoint) -> Fit:
    where = f"calibration method {entry.name!r} ({entry.value}, of package {entry.dist.name if entry.dist else '?'})"
    try:
        fit = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way, sys.exit too; the user must learn which one it was
        raise PluginError(
            f"{where} does not import: {type(error).__name__}: {error}; fix or uninstall the package"
        ) from error
    if not callable(fit):
        raise PluginError(f"{where} is no function; let the entry point name one")
    return fit  # type: ignore[no-any-return]


def _where(fit: Any) -> str:
    return f"{getattr(fit, '__module__', '')}.{getattr(fit, '__qualname__', repr(fit))}"
