"""Lines of the model's own code: those that are neither torch's nor fxq's."""

import linecache
import os
import re
import traceback
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch.fx import Node, Tracer

_NOT_USER_CODE = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent))

_FRAME = re.compile(r'File "([^"]+)", line')


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


def user_lines(stack: str) -> str:
    """Return a traceback as text without the frames of torch and fxq."""
    frames = re.split(r'^(?=  File ")', "\n" + stack if stack.startswith("File") else stack, flags=re.MULTILINE)
    found = [frame for frame in frames if (named := _FRAME.search(frame)) and is_user_code(named[1])]
    return "".join(found).strip()


def user_line(frame: FrameType | None) -> str:
    """Return file, line and text of the innermost line of the model's code that led to ``frame``."""
    while frame is not None and not is_user_code(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "in torch's own code"
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{frame.f_code.co_filename}:{frame.f_lineno} `{text}`"


def line_of(node: Node) -> str:
    """Return file, line and text of the model's code that a node comes from; its name where that is not known."""
    lines = iter((node.stack_trace or "").strip().splitlines()[::-1])
    text, where = next(lines, "").strip(), next(lines, "").strip()
    return f"{where} `{text}`".strip() if text else f"node {node.name!r}"
