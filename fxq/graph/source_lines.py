"""Lines of the model's own code: those that are neither torch's nor fxq's."""

import os
import traceback
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch.fx import Tracer

_NOT_USER_CODE = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent))


def is_user_code(filename: str) -> bool:
    """Whether a source file is neither torch's nor fxq's."""
    return not filename.startswith(_NOT_USER_CODE)


def user_stack(frame: FrameType | None) -> str:
    """Return the lines of the model's code that lead to ``frame``, outermost first, as a traceback prints them."""
    stop: CodeType = Tracer.trace.__code__
    frames: list[tuple[FrameType, int]] = []
    while frame is not None and frame.f_code is not stop:
        if is_user_code(frame.f_code.co_filename):
            frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return "".join(traceback.StackSummary.extract(iter(frames[::-1])).format()).strip()
