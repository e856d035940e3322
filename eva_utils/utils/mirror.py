"""A second place for a run's files, such as a folder of Google Drive."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from .checkpoint import check_folder, write_atomic

_OF_A_RUN = re.compile(r"epoch-\d+\.pt|best\.pt|last\.pt|history\.json|command\.json")
_SEAL_BYTES = 64  # a checkpoint ends with its checksum


def check_mirror(folder: Path, mirror: Path, resume: bool | str) -> None:
    """Refuse a mirror that holds anything but this run; nothing is written.

    Raises:
        ValueError: the mirror is a file or the run's own folder, or holds another run, or this one further on.
    """
    if mirror.resolve() == folder.resolve():
        raise ValueError(f"mirror {mirror} is the folder of the run itself; name a second place")
    if mirror.exists() and not mirror.is_dir():
        raise ValueError(f"mirror {mirror} is a file; name a folder")
    if not _holds_run(mirror):
        return
    if not _holds_run(folder):
        check_folder(mirror, resume)
        return
    ours, theirs = _rows(folder), _rows(mirror)
    if theirs != ours[: len(theirs)]:
        raise ValueError(
            f"the mirror {mirror} holds {len(theirs)} epochs that are not those of the run in {folder}; "
            "name another mirror, or another checkpoint folder to resume from the mirror"
        )


def restore_run(folder: Path, mirror: Path, log: Callable[[str], None]) -> None:
    """Copy a run from its mirror into a folder that holds none; a run that is there is left alone.

    Raises:
        OSError: the folder cannot be written to, or the mirror not read.
    """
    if _holds_run(folder) or not _holds_run(mirror):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in sorted(_files(mirror).items()):
        write_atomic(folder / name, path.read_bytes())
    log(f"Copied the run in {mirror} to {folder}")


def copy_run(folder: Path, mirror: Path, log: Callable[[str], None]) -> None:
    """Bring the mirror up to date with a run's folder; what fails is told to `log` and stops nothing.

    Each file is written whole or not at all, and read back. What the run no longer has goes from the mirror last.
    """
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        ours = _files(folder)
        for name, path in sorted(ours.items()):
            if not _is_copy(mirror / name, path):
                write_atomic(mirror / name, path.read_bytes())
        for name, path in _files(mirror).items():
            if name not in ours:
                path.unlink()
    except OSError as error:
        log(f"Warning: the mirror {mirror} is not up to date ({error}); the run goes on in {folder}")


def _files(folder: Path) -> dict[str, Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path for path in found if _OF_A_RUN.fullmatch(path.name)}


def _holds_run(folder: Path) -> bool:
    return any(name != "command.json" for name in _files(folder))


def _rows(folder: Path) -> list:
    path = folder / "history.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _is_copy(copy: Path, path: Path) -> bool:
    """Whether a file is there already: by its size and checksum, or, where it carries none, by its content."""
    if not copy.exists() or copy.stat().st_size != path.stat().st_size:
        return False
    tails = []
    for each in (copy, path):
        with each.open("rb") as file:
            if path.suffix == ".pt":
                file.seek(-_SEAL_BYTES, 2)
            tails.append(file.read())
    return tails[0] == tails[1]
