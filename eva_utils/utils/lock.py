"""One process a run: a lock on the run's folder that dies with its process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; the system lets go of it when the process ends, however it ends.

    Where the system or the file system knows no locks (Windows, some network drives), nothing is held.

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
        if fcntl is not None:
            try:
                # lockf, not flock: workers forked from this process must not keep the lock after it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(
                    f"another process is training in {folder}; wait for it, stop it, or choose another folder"
                ) from None
            except OSError:
                pass
        yield
