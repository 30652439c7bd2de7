"""Runtimes in a process of their own: one that crashes takes its process along, and nothing else."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fxq.errors import FxqError, RuntimeCrashedError

T = TypeVar("T")

TIMEOUT_S = 1800.0
# Of what the process wrote before it ended: the last of it says why.
_LAST_LINES = 5
_MAIN = "from fxq.runtimes.child import main; main()"


def in_child(function: Callable[..., T], *arguments: Any, what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Return what ``function(*arguments)`` returns in a new process.

    Args:
        function: one of a module, found there by its name.
        arguments: what pickle can write, as the result.
        what: what is done, for the message, such as "onnxruntime on model.onnx".
        timeout_s: after which the process is ended.

    Raises:
        FxqError: the function raised it.
        RuntimeCrashedError: the process ended otherwise, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, answer = Path(folder) / "call", Path(folder) / "answer"
        call.write_bytes(pickle.dumps((function, arguments)))
        # The path as it is here, for the caller may have added to it; -P: no module of the working directory.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", _MAIN, str(call), str(answer)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeCrashedError(f"{what}: not done after {timeout_s:.0f} s") from error
        if not answer.is_file():
            raise RuntimeCrashedError(f"{what}: {_how_it_ended(done)}")
        is_error, found = pickle.loads(answer.read_bytes())
    if is_error:
        raise found
    return found  # type: ignore[no-any-return]  # pickle knows no types


def main() -> None:
    """Make the call that a file holds, and write what it returns, or which error of fxq it raises."""
    call, answer = map(Path, sys.argv[1:])
    function, arguments = pickle.loads(call.read_bytes())
    try:
        found = False, function(*arguments)
    except FxqError as error:
        found = True, type(error)(*error.args)
    partial = answer.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(found))
    partial.replace(answer)
    os._exit(0)  # with the answer written; libraries that crash while they are unloaded change nothing


def _how_it_ended(done: "subprocess.CompletedProcess[bytes]") -> str:
    code = done.returncode
    how = f"ended by signal {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
    said = done.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return f"the process {how}" + (f"; its last words: {' / '.join(said)}" if said else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
