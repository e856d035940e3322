"""Files written whole or not at all, with a checksum that is looked at before they are loaded.

`torch.load` alone accepts a file in which bits have flipped. Every file here therefore ends with the
SHA-256 of all that stands before it, placed in the comment that a zip archive may carry, so that
`torch.load` still reads it. Files hold tensors and plain Python values only and are loaded with
`weights_only=True`.
"""

import hashlib
import io
import os
import re
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MARK = b"sha256:"
_SEAL_BYTES = len(_MARK) + 64


class DamagedFileError(ValueError):
    """A checkpoint whose content is not what was written."""


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at any moment either the old content is there or all of the new.

    The content goes to a temporary file in the same folder, is flushed to the disk, read back and
    compared, and then renamed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if _digest(temporary) != hashlib.sha256(content).digest():
            raise OSError(f"{path} was not written correctly: the disk returned other bytes; {path.name} is as it was")
        _rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path) -> bytes:
    """Return a file's SHA-256, read piece by piece: a checkpoint is in memory once already."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.digest()


def _rename(temporary: Path, path: Path) -> None:
    """Rename over a file; Windows refuses while a scanner or a viewer holds it, and is asked again for two seconds."""
    for wait in (0.05, 0.1, 0.25, 0.5, 1.1):
        try:
            temporary.replace(path)
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(wait)
        else:
            return
    temporary.replace(path)


def save_verified(path: Path, value: object) -> None:
    """Save tensors and plain Python values with their checksum, atomically.

    Raises:
        TypeError: the value holds anything else, which `weights_only=True` would not load again.
    """
    check_savable(path.name, value)
    content = io.BytesIO()
    torch.save(_portable(value), content)
    content.seek(-2, io.SEEK_END)  # a zip archive ends with the length of its comment, so far 0, and the comment
    content.write(struct.pack("<H", _SEAL_BYTES) + _MARK)
    content.write(hashlib.sha256(content.getbuffer()).hexdigest().encode())
    write_atomic(path, content.getbuffer())


def check_savable(name: str, value: object) -> None:
    """Raise TypeError if `save_verified` would; of the tensors only the kind is looked at, which takes no time."""
    buffer = io.BytesIO()
    try:
        torch.save(_portable(value, lambda tensor: tensor.new_empty(0)), buffer)
        torch.load(io.BytesIO(buffer.getbuffer()), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = re.search(r"Unsupported .*", str(error))
        raise TypeError(
            f"{name} would hold more than tensors and plain values: {reason[0] if reason else error}"
        ) from error


def _portable(value: Any, of_tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Bring tensors to the CPU and turn numpy's numbers into Python's, in dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return of_tensor(value.detach()).cpu()
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, OrderedDict):
        content = type(value)((key, _portable(part, of_tensor)) for key, part in value.items())
        if hasattr(value, "_metadata"):  # of a state_dict: the versions of the modules
            content._metadata = _portable(value._metadata)
        return content
    if type(value) in (list, tuple):
        return type(value)(_portable(part, of_tensor) for part in value)
    return value


def load_verified(path: Path) -> Any:
    """Load what `save_verified` saved, onto the CPU.

    Raises:
        DamagedFileError: the file is truncated or changed.
    """
    content = Path(path).read_bytes()
    if not is_whole(content):
        raise DamagedFileError(f"{path} is damaged or was not saved by this package: its checksum does not fit")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def is_whole(content: bytes) -> bool:
    """Whether a file's content is what `save_verified` wrote, by the checksum at its end."""
    body, seal = content[:-64], content[-64:]
    return body.endswith(_MARK) and hashlib.sha256(body).hexdigest().encode() == seal
