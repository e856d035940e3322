"""A second place for a run's files, such as a folder of Google Drive."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from .checkpoint import check_folder, latest_state
from .history import History
from .lock import locked
from .verified import is_whole, write_atomic

# In the order in which they are copied: the record first, which says whose mirror this is, and what is made
# from an epoch's state after that state.
_OF_A_RUN = ("history.json", r"epoch-\d+\.pt", r"best\.pt", r"last\.pt", r"command\.json")

_COLAB = Path("/content")


def check_mounted(folder: Path) -> None:
    """Refuse a folder of Google Drive in Colab where Drive is not mounted: it would be on the disk that Colab wipes.

    Raises:
        ValueError: it is one.
    """
    folder = folder.resolve()
    names = ("MyDrive", "My Drive", "Shareddrives")
    drive = next((part for part in (folder, *folder.parents) if part.name in names), None)
    if drive is not None and _COLAB in drive.parent.parents and not os.path.ismount(drive.parent):
        raise ValueError(
            f"{folder} is on Google Drive, which is not mounted, so it would be lost with Colab's disk; run "
            f"from google.colab import drive; drive.mount({str(drive.parent)!r}) first"
        )


def check_mirror(folder: Path, mirror: Path, resume: bool | str) -> None:
    """Refuse a mirror that holds anything but this run; nothing is written.

    Raises:
        ValueError: the mirror is a file or in the run's own folder, or holds another run, or this one further on.
    """
    if folder.resolve() in (mirror.resolve(), *mirror.resolve().parents):
        raise ValueError(f"mirror {mirror} is in the folder of the run itself; name a second place")
    if mirror.exists() and not mirror.is_dir():
        raise ValueError(f"mirror {mirror} is a file; name a folder")
    if recorded_rows(folder) is None and recorded_rows(mirror) is not None:
        try:
            check_folder(mirror, resume)
        except ValueError as error:
            raise ValueError(f"the mirror {error}") from None
        return
    _check_own(folder, mirror)
    ours, theirs = recorded_rows(folder) or [], recorded_rows(mirror) or []
    if len(theirs) > len(ours):
        raise ValueError(
            f"the mirror {mirror} holds {len(theirs)} epochs of this run and {folder} only {len(ours)}; "
            "resume from the mirror in another checkpoint folder"
        )


def mend_record(folder: Path, log: Callable[[str], None]) -> None:
    """Write a record that cannot be read anew from the last whole epoch; a folder without one is left alone.

    Raises:
        DamagedFileError: no epoch is whole.
        ValueError: there is none, or another run is training in the folder.
    """
    try:
        recorded_rows(folder)
    except ValueError:
        with locked(folder):
            if not _rewrite_record(folder, "damaged", log):
                raise


def mend_mirrors_record(folder: Path, mirror: Path, log: Callable[[str], None]) -> None:
    """Do so for the mirror of a run that its own folder does not hold; there a record may be missing too.

    Raises:
        DamagedFileError: no epoch is whole.
    """
    if recorded_rows(folder) is not None or not mirror.is_dir():
        return
    try:
        if recorded_rows(mirror) is not None:
            return
    except ValueError:
        pass  # where there is no epoch, check_mirror raises it again
    _rewrite_record(mirror, "lost or damaged", log)


def _rewrite_record(folder: Path, was: str, log: Callable[[str], None]) -> bool:
    """Write the record of the last whole epoch, and return whether there is an epoch."""
    state = latest_state(folder, log)
    if state is None:
        return False
    write_atomic(folder / "history.json", History(**state["history"]).to_json().encode())
    log(f"{folder / 'history.json'} was {was} and is that of epoch {state['epoch']} again")
    return True


def restore_run(folder: Path, mirror: Path, log: Callable[[str], None]) -> list[Path]:
    """Copy a run from its mirror into a folder that holds none, and return the files; one that is there is left alone.

    A copy that was cut halfway is taken up again: the record comes last.

    Raises:
        ValueError: the folder holds other files of these names.
        OSError: the folder cannot be written to, or the mirror not read.
    """
    if recorded_rows(folder) is not None or recorded_rows(mirror) is None:
        return []
    restored = []
    for path in reversed(_files(mirror)):
        copy = folder / path.name
        if copy.exists() and not _is_copy(copy, path) and path.name != "command.json":
            raise ValueError(f"{copy} is another file than that in the mirror {mirror}; choose another folder")
        write_atomic(copy, path.read_bytes())
        restored.append(copy)
    log(f"Copied the run in {mirror} to {folder}")
    return restored


def mend_run(folder: Path, mirror: Path, log: Callable[[str], None]) -> None:
    """Put the mirror's file in the place of each damaged one of a run, if it is whole there and of the same epochs."""
    as_far = recorded_rows(mirror) == recorded_rows(folder)
    for path in _files(folder):
        copy = mirror / path.name
        if not as_far and not path.name.startswith("epoch-"):  # only that name says of which epoch a file is
            continue
        if path.suffix == ".pt" and not is_whole(path.read_bytes()) and copy.exists() and is_whole(copy.read_bytes()):
            write_atomic(path, copy.read_bytes())
            log(f"{path} was damaged and is the mirror's again")


def copy_run(folder: Path, mirror: Path, log: Callable[[str], None], found: list | None = None) -> None:
    """Bring the mirror up to date with a run's folder; what fails is told to `log` and stops nothing.

    Each file is written whole or not at all, and read back; a damaged one is not copied. What the run no
    longer has goes from the mirror last.

    Args:
        folder: the run's own.
        mirror: the second one.
        log: takes one line.
        found: the rows of the mirror's record when the run was taken up.
    """
    try:
        check_mounted(mirror)  # each time: without Drive the folder would be made anew on the disk of Colab
        _check_own(folder, mirror)
        _check_alone(folder, mirror, found)
        mirror.mkdir(parents=True, exist_ok=True)
        for unfinished in mirror.glob(".*.tmp"):
            unfinished.unlink()
        ours = _files(folder)
        for path in ours:
            content = path.read_bytes()
            if path.suffix == ".pt" and not is_whole(content):
                log(f"Warning: {path} is damaged and not copied to the mirror")
            elif not _is_copy(mirror / path.name, path):
                write_atomic(mirror / path.name, content)
        for path in _files(mirror):
            if path.name not in {own.name for own in ours}:
                if path.name.startswith("epoch-"):
                    os.truncate(path, 0)  # else it fills Drive's bin; an empty one is taken for damaged
                path.unlink()
    except (OSError, ValueError) as error:
        log(f"Warning: the mirror {mirror} is not up to date ({error}); the run goes on in {folder}")


def _check_own(folder: Path, mirror: Path) -> None:
    """Raise ValueError if a mirror holds files that are not of this run, which its first epoch tells."""
    theirs = recorded_rows(mirror)
    if _files(mirror) and (theirs is None or theirs[:1] != (recorded_rows(folder) or [])[:1]):
        held = f"{_files(mirror)[0].name} and no history.json" if theirs is None else f"{len(theirs)} epochs"
        raise ValueError(
            f"the mirror {mirror} holds {held}, which are not those of the run in {folder}; "
            "to go on with the mirror's, name another checkpoint folder, and to keep this one, another mirror"
        )


def _check_alone(folder: Path, mirror: Path, found: list | None) -> None:
    """Raise ValueError if a mirror holds epochs that are neither the run's nor those found when it was taken up.

    The seconds of an epoch tell those of two sessions apart that went on with the same run.
    """
    theirs = recorded_rows(mirror)
    if theirs is not None and theirs != found and theirs != (recorded_rows(folder) or [])[: len(theirs)]:
        raise ValueError(
            f"another session writes to this mirror: it holds {len(theirs)} epochs, and the last of them are not "
            "those of the run here; stop one of the two sessions"
        )


def _files(folder: Path) -> list[Path]:
    """Return the files of a run, in the order in which they are copied."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for pattern in _OF_A_RUN for path in found if re.fullmatch(pattern, path.name)]


def recorded_rows(folder: Path) -> list | None:
    """Return the rows of the record in a folder, or None where there is none."""
    path = folder / "history.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=str)["rows"]  # a NaN equals no other
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run ({error}); put it right, or name another folder") from None


def _is_copy(copy: Path, path: Path) -> bool:
    return copy.exists() and copy.stat().st_size == path.stat().st_size and copy.read_bytes() == path.read_bytes()
