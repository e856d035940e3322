"""Where a run keeps its epochs: its folder, locked while the run lasts, and the mirror of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from . import checkpoint as disk
from . import processes
from .history import History
from .lock import locked
from .mirror import (
    check_mirror,
    check_mounted,
    copy_run,
    mend_mirrors_record,
    mend_record,
    mend_run,
    recorded_rows,
    restore_run,
)
from .names import plural
from .state import OtherRunError, RunState
from .verified import DamagedFileError, check_savable


class RunFolder:
    """A run's folder and its mirror; of several processes the first one writes. Without a folder nothing is kept.

    Args:
        folder: the run's own, or None.
        mirror: a second one, to which each epoch is copied, or None.
        resume: False for a new run, True to continue the one in the folder, "auto" to do so if there is one.
        log: takes one line.

    Raises:
        ValueError: the other arguments need a folder.
    """

    def __init__(
        self, folder: str | Path | None, mirror: str | Path | None, resume: bool | str, log: Callable[[str], Any]
    ) -> None:
        if folder is None and resume:
            raise ValueError("resume needs the folder of the run: give checkpoint= as well")
        if folder is None and mirror is not None:
            raise ValueError("mirror copies the folder of the run: give checkpoint= as well")
        self.folder = None if folder is None else Path(folder)
        self.mirror = None if mirror is None else Path(mirror)
        self.resume, self.log = resume, log
        self._taken_up = False
        self._found: list | None = None  # the mirror's rows as the run is taken up

    @contextmanager
    def opened(self) -> Iterator[dict | None]:
        """Hold the lock while the context lasts; yield the state of the last finished epoch, or None for a new run.

        A run that only the mirror has is copied back first, and taken away again unless it is taken up. Of
        several processes the first one does all this, and tells the others that state.

        Raises:
            ValueError: the folder or the mirror does not go with `resume`, is on a Google Drive that is not mounted, or
                another run is at work there.
            OSError: the folder cannot be written to.
        """
        with ExitStack() as stack:
            yield processes.first_does(lambda: stack.enter_context(self._held()))

    @contextmanager
    def _held(self) -> Iterator[dict | None]:
        """Do what `opened` says, in the process that writes."""
        if self.folder is None:
            yield None
            return
        check_mounted(self.folder)
        if self.mirror is not None:
            check_mounted(self.mirror)
            if self.resume:
                mend_record(self.folder, self.log)
                mend_mirrors_record(self.folder, self.mirror, self.log)
            check_mirror(self.folder, self.mirror, self.resume)
        if self.mirror is None or not self.resume:
            disk.check_folder(self.folder, self.resume)
        with locked(self.folder):
            restored = []
            if self.mirror is not None and self.resume:
                restored = restore_run(self.folder, self.mirror, self.log)
            disk.check_folder(self.folder, self.resume)  # once more: another run may have ended since
            if self.mirror is not None and self.resume:
                mend_run(self.folder, self.mirror, self.log)
            try:
                state = disk.latest_state(self.folder, self.log)
                if self.mirror is not None:
                    self._found = recorded_rows(self.mirror)
                    if state is None and self.resume:
                        self.log(f"A new run: neither {self.folder} nor its mirror {self.mirror} holds one")
                yield state
            except BaseException as error:
                if not restored or self._taken_up:
                    raise
                for path in restored:
                    path.unlink(missing_ok=True)
                if not isinstance(error, OtherRunError | DamagedFileError):
                    raise
                raise ValueError(f"{error} (in the mirror {self.mirror}, so name another one as well)") from error

    def check_savable(self, state: RunState, history: History) -> None:
        """Raise TypeError if what an epoch leaves could not be put on disk, and not after that epoch."""
        if self.folder is not None:
            check_savable("epoch-0001.pt", state.collect(history))
            history.to_json()

    def save(self, state: RunState, history: History) -> None:
        """Put a finished epoch on disk, and into the mirror."""
        if self.folder is not None:
            self._write(disk.save_epoch, state.collect(history), history)

    def take_up(self, saved: dict, history: History, epochs: int) -> None:
        """Write again what is made from the last epoch's state, since a kill may have come between, and say so."""
        self._write(partial(disk.rewrite_derived, log=self.log), saved, history)
        if len(history) < epochs:
            self.log(f"Resuming after epoch {len(history)} of {epochs} in {self.folder}")
        else:
            done = plural(len(history), "epoch")
            more = f", more than the {epochs} asked for" if len(history) > epochs else ""
            self.log(f"The run in {self.folder} has finished its {done}{more}: its weights and history are loaded")

    def _write(self, write: Callable[[Path, dict, str, int], None], state: dict, history: History) -> None:
        if self.folder is None or processes.rank():
            return
        self._taken_up = True
        write(self.folder, state, history.to_json(), history.best["epoch"])
        if self.mirror is not None:
            copy_run(self.folder, self.mirror, self.log, self._found)
