"""One process per run: a lock on the run's folder that dies with its process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which has the other
    fcntl = None  # type: ignore[assignment]
    import msvcrt


# Workers forked while a run is held must not keep its lock after it: each closes its copy of the file.
_held: set[IO] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; the system lets go of it when the process ends, however it ends.

    Where the file system knows no locks, as some network drives, nothing is held.

    Raises:
        ValueError: another run holds it.
        OSError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); choose another folder") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            raise ValueError(
                f"another run is training in {folder}; wait for it, stop it, or choose another folder"
            ) from None
        except OSError:
            pass
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _lock(file: IO) -> None:
    """Lock a file, or raise BlockingIOError if another holds it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    file.seek(0)  # its first byte is what is locked
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError as error:  # so Windows says it; elsewhere it is a file system that allows no locks
        raise BlockingIOError(*error.args) from None
