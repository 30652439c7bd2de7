"""The file: safetensors, whose metadata has the header as JSON under "fxq". Read without running anything of it."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from fxq.errors import SavedModelError
from fxq.output_file import OutputFile
from fxq.saving.migrations import VERSION, migrated
from fxq.saving.packed import FIELDS, Packed

_KEY = "fxq"
_FOREIGN = (
    (b"PK\x03\x04", "a file of torch.save, or another archive"),
    (b"\x80", "a pickle"),
    (b"\x08", "probably ONNX"),
)


def write_packed(packed: Packed, path: str | os.PathLike[str]) -> None:
    """Write the file; under a temporary name first, so never half of it.

    Raises:
        ExportError: nothing can be written there.
    """
    import safetensors.torch  # noqa: PLC0415 - quantizing needs no file, and a machine for GPU tests may lack it

    file = OutputFile(path)
    header = {"version": VERSION, "fxq": version("fxq"), **packed.header}
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in packed.tensors.items():
        value = tensor.detach().contiguous()
        # safetensors takes no two tensors of one memory.
        tensors[name] = value.clone() if value.untyped_storage().data_ptr() in memory else value
        memory.add(value.untyped_storage().data_ptr())
    with file.staging() as folder:
        staged = folder / "model"
        staged.touch()
        mode = staged.stat().st_mode  # safetensors makes files that only their owner may read
        safetensors.torch.save_file(tensors, staged, {_KEY: json.dumps(header)})
        staged.chmod(mode)
        file.place(staged, is_onnx=False)


def read_packed(path: str | os.PathLike[str]) -> Packed:
    """Return what the file holds, in today's form.

    Raises:
        SavedModelError: there is no such file, it is truncated, of something else, or of a newer fxq.
    """
    import safetensors  # noqa: PLC0415

    file = Path(path)
    if not file.is_file():
        raise SavedModelError(f"there is no file {file}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except safetensors.SafetensorError as error:
        raise SavedModelError(f"{file} cannot be read: {_what_is_wrong(file, error)}") from error
    except OSError as error:
        raise SavedModelError(f"{file} cannot be read: {error.strerror or error}") from error
    if _KEY not in metadata:
        raise SavedModelError(
            f"{file} holds tensors and was not written by fxq.save: load them into the model (load_state_dict), and "
            "prepare that"
        )
    try:
        header = json.loads(metadata[_KEY])
        found = header["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(f"{file} cannot be read: what fxq wrote in it is damaged ({error})") from error
    if not isinstance(found, int) or not 0 <= found <= VERSION:
        raise SavedModelError(
            f"{file} has version {found} of the format, written by fxq {header.get('fxq', '?')}; this fxq "
            f"({version('fxq')}) reads up to version {VERSION}: update fxq"
        )
    packed = migrated(Packed(header, tensors))
    absent = sorted(FIELDS - packed.header.keys())
    if absent:
        raise SavedModelError(f"{file} cannot be read: it lacks {', '.join(absent)}, which fxq.save always writes")
    return packed


def _what_is_wrong(file: Path, error: Any) -> str:
    with file.open("rb") as opened:
        start = opened.read(8)
    size = file.stat().st_size
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        return f"it has {size} bytes, so it is truncated or was not written by fxq.save"
    foreign = next((what for magic, what in _FOREIGN if start.startswith(magic) and length > 10**8), None)
    if foreign is not None:
        return f"it was not written by fxq.save: it is {foreign}"
    if length > 10**8:
        return "it was not written by fxq.save"
    return f"it is truncated or damaged ({error})"
