"""Where exported files are written: whole or not at all, whoever else writes there, whatever is in the way."""

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fxq
from fxq import ExportError
from fxq.output_file import OutputFile

# The package without its __init__, which imports torch: that takes seconds.
ALONE = (
    "import sys, types\nfxq = types.ModuleType('fxq')\nfxq.__path__ = [sys.argv.pop()]\nsys.modules['fxq'] = fxq\n"
    "from fxq.output_file import OutputFile, _locked\n"
)


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with ``code``, which knows OutputFile and sys."""
    command = [sys.executable, "-c", ALONE + code, *map(str, arguments), str(Path(fxq.__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write(path: Path | str, content: str = "new", data: str = "") -> list[Path]:
    """Write ``content``, and ``data`` as its weights if there are any."""
    output = OutputFile(path)
    with output.staging() as folder:
        staged = folder / output.real.name
        staged.write_text(content)
        if data:
            staged.with_name(f"{staged.name}.data").write_text(data)
        return output.place(staged)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.onnx", tmp_path / "link.onnx"
    link.symlink_to(real)
    for content in ("first", "second"):  # the link leads nowhere at first
        assert write(link, content) == [link]
        assert link.is_symlink()
        assert real.read_text() == content
    assert names(tmp_path) == ["link.onnx", "there"]
    assert names(tmp_path / "there") == ["real.onnx"]


def test_weights_beside_a_link_that_leads_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real.onnx")
    with pytest.raises(ExportError, match=r"a link to .*real\.onnx.*; write to .*real\.onnx"):
        write(tmp_path / "link.onnx", data="weights")
    assert names(tmp_path) == ["link.onnx"]
    (tmp_path / "folder").symlink_to(tmp_path)
    assert write(tmp_path / "folder" / "real.onnx", data="weights")[1].read_text() == "weights"


def test_permissions_stay_and_new_files_get_those_of_the_umask(tmp_path: Path) -> None:
    path, data = tmp_path / "a.onnx", tmp_path / "a.onnx.data"
    before = os.umask(0o027)
    try:
        write(path)
    finally:
        os.umask(before)
    assert mode(path) == 0o640
    path.chmod(0o600)
    write(path, data="weights")
    assert (mode(path), mode(data)) == (0o600, 0o600)
    data.chmod(0o640)
    write(path, data="weights")
    assert (mode(path), mode(data)) == (0o600, 0o640)


def test_weights_that_nothing_refers_to_any_more_are_removed(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", data="weights")
    write(tmp_path / "a.onnx")
    assert names(tmp_path) == ["a.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_a_killed_export_left_is_removed_by_the_next_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    code = (
        "import time\nwith OutputFile(sys.argv[1]).staging() as folder:\n"
        "    (folder / 'a.onnx').write_text('half')\n    print(folder.name, flush=True)\n    time.sleep(60)\n"
    )
    with run(code, tmp_path / "a.onnx") as process:
        assert process.stdout is not None
        staging = process.stdout.readline().strip()
        write(tmp_path / "b.onnx")
        assert names(tmp_path) == [staging, "a.onnx", "b.onnx"]
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [staging, "a.onnx", "b.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "old"
    (tmp_path / ".fxq-export-of-a-user").mkdir()
    write(tmp_path / "b.onnx")
    assert names(tmp_path) == [".fxq-export-of-a-user", "a.onnx", "b.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_of_processes_that_write_one_path_one_wins_whole(tmp_path: Path) -> None:
    code = (
        "path, name = sys.argv[1:]\n"
        "for _ in range(200):\n    output = OutputFile(path)\n    with output.staging() as folder:\n"
        "        for file in ('a.onnx', 'a.onnx.data'):\n            (folder / file).write_text(name)\n"
        "        output.place(folder / 'a.onnx')\n"
        "    with _locked(output.real.parent):\n"
        "        found = {(output.real.parent / file).read_text() for file in ('a.onnx', 'a.onnx.data')}\n"
        "    assert len(found) == 1, found\n"
    )
    running = [run(code, tmp_path / "a.onnx", name) for name in ("one", "two")]
    errors = [process.communicate()[1] for process in running]
    assert errors == ["", ""]
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300 + ".onnx", "File name too long; choose a shorter name"),
        ("a\0b.onnx", r"cannot write 'a\\x00b.onnx': .* choose another"),
        ("a\ud800.onnx", r"cannot write '.*a\\ud800.onnx': .* choose another"),
        ("a\udcff.onnx", r"a\\udcff.onnx': .* choose another"),
        ("folder", "is a directory; add a file name"),
        ("nowhere/a.onnx", "nowhere does not exist; create it first"),
        ("file/a.onnx", "file does not exist; create it first"),
        ("pipe", "a device or a pipe"),
        ("loop", "leads back to itself"),
        ("dangling", "there is no folder"),
    ],
    ids=[
        "long",
        "NUL",
        "surrogate",
        "not UTF-8",
        "folder",
        "no parent",
        "parent is a file",
        "pipe",
        "loop",
        "dangling",
    ],
)
def test_a_path_that_cannot_be_written_is_an_export_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "a.onnx")
    before = names(tmp_path)
    with pytest.raises(ExportError, match=message):
        write(name if "\0" in name else f"{tmp_path}/{name}")
    assert names(tmp_path) == before


@pytest.mark.parametrize("path", [3, None, b"a.onnx", ["a.onnx"]])
def test_what_is_no_path_is_an_export_error(path: object) -> None:
    with pytest.raises(ExportError, match="path must be a file name"):
        OutputFile(path)


def test_a_full_disk_says_what_to_do_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # the nearest to a full disk that a test can have
    try:
        with pytest.raises(ExportError, match=r"a\.onnx: File too large; choose a folder on a disk"):
            write(tmp_path / "a.onnx", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.onnx").read_text() == "old"
    assert names(tmp_path) == ["a.onnx"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a directory that even root cannot write to")
def test_a_folder_that_takes_no_files_says_what_to_do() -> None:
    with pytest.raises(ExportError, match=r"cannot write /proc/x\.onnx: .*; choose"):
        write("/proc/x.onnx")
