"""A file that is written whole or not at all, whoever else writes it, and however the process ends.

It is made in a folder of its own beside its place, and moved from there: a rename is atomic. The folder's owner holds a
lock on it, which the system takes back when the process is gone, so that the next to write there can tell what was left
behind, and removes it. A second lock, on the folder that is written to, keeps a file and its weights together where two
write the same path.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxq.errors import ExportError
from fxq.literal import has_utf8_form

if sys.platform != "win32":  # which has no such locks, and renames no file that another process has open
    import fcntl

_STAGING, _OWNER, _LOCK = ".fxq-export-", "owner.lock", ".fxq-lock"
_CURES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.EFBIG: "choose a folder on a disk that takes files of this size",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the link leads back to itself; remove it",
}


class OutputFile:
    """The place of a file that is going to be written, and of the weights ``<file>.data`` beside it.

    Attributes:
        path: as the caller names it.
        real: where it is: behind the link, if ``path`` is one.

    Raises:
        ExportError: nothing can be written there; says why, and what to do.
    """

    def __init__(self, path: Any) -> None:
        self.path = _as_path(path)
        with self._explained():
            self.real = Path(os.path.realpath(self.path))
            _check_place(self.path, self.real)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Make a folder for the file, and remove it afterwards; those whose owners are gone are removed too.

        Raises:
            ExportError: writing fails, in here or in the block.
        """
        with self._explained():
            with _locked(self.real.parent):
                _remove_abandoned(self.real.parent)
                folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.real.parent))
                owner = os.open(folder / _OWNER, os.O_CREAT | os.O_RDWR, 0o600)
                _lock(owner)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(owner)

    def place(self, staged: Path, is_onnx: bool = True) -> list[Path]:
        """Move the file ``staged``, and ``<staged>.data`` if there is one, to their place; return where they are.

        They keep the permissions of the file that was there. Weights that nothing refers to any more are removed, where
        the file ``is_onnx`` and so could refer to some.

        Raises:
            ExportError: weights would not be found through the link that ``path`` is.
        """
        staged_data, data = _data(staged), _data(self.real)
        has_data = staged_data.exists()
        if has_data and not (self.real.name == self.path.name and self.path.parent.samefile(self.real.parent)):
            raise ExportError(
                f"cannot write {self.path}: it is a link to {self.real}, and readers would look for the weights beside "
                f"the link; write to {self.real}"
            )
        with _locked(self.real.parent):
            if has_data:  # first: the model file is what makes the pair valid
                _move(staged_data, data, mode_of=(data, self.real))
            _move(staged, self.real, mode_of=(self.real,))
            if is_onnx and not has_data:
                data.unlink(missing_ok=True)
        return [self.path, _data(self.path)] if has_data else [self.path]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cure = _CURES.get(error.errno or 0, "choose another path")
            raise ExportError(f"cannot write {self.path}: {error.strerror or error}; {cure}") from error


def _as_path(path: Any) -> Path:
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ExportError(f"path must be a file name such as 'model.onnx', got {path!r}")
    # The file stores the name of its weights, in UTF-8.
    if "\0" in text or not has_utf8_form(text):
        raise ExportError(f"cannot write {text!r}: the name holds what is no text in UTF-8; choose another")
    return Path(text)


def _check_place(path: Path, real: Path) -> None:
    """Raise an ExportError, or the system's own error, if no file can be made at ``real``."""
    if path.is_symlink() and not real.parent.is_dir():
        raise ExportError(f"cannot write {path}: it is a link to {real}, and there is no folder {real.parent}")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise ExportError(f"cannot write {path}: it is a directory; add a file name such as model.onnx")
    if mode is not None and not stat.S_ISREG(mode):
        raise ExportError(f"cannot write {path}: it is a device or a pipe; name a file")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")


def _data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _move(staged: Path, place: Path, mode_of: tuple[Path, ...]) -> None:
    """Move a file, with the permissions of the first of ``mode_of`` that there is, else those it was made with."""
    found = next((one.stat().st_mode for one in mode_of if one.exists()), None)
    if found is not None:
        staged.chmod(stat.S_IMODE(found))
    staged.replace(place)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep all others out who write to ``folder`` in here; the lock is a file, since not every system locks folders."""
    file = folder / _LOCK
    while True:
        handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        if not _lock(handle, waits=True):
            warnings.warn(f"the disk of {folder} has no locks: export to it from one process at a time", stacklevel=2)
            break
        # Who had it before has removed it, and a third may have made another meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                break
        os.close(handle)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _lock(handle: int, waits: bool = False) -> bool:
    """Lock an open file until it is closed; return whether that worked."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders of exports that were killed."""
    if sys.platform == "win32":
        return
    for left in folder.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):  # another user's, or removed by its owner this moment
            handle = os.open(left / _OWNER, os.O_RDWR)
            try:
                if _lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
