"""How much a call does, counted instead of timed: the same on a busy machine."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_OURS = ("fxq", "fxq_passes")


def work_of(call: Callable[[], Any]) -> int:
    """Return how many Python functions ``call`` enters, and how many lines of fxq's own it runs, loops included.

    Without collecting garbage: what other tests left behind, and what libraries do when it is collected, is none of it.
    """
    count = 0

    def count_line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return count_line

    def count_call(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += 1
        return count_line if str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS else None

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(count_call)
    try:
        call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count
