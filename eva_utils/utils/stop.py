"""Ctrl-C and SIGTERM finish the batch; a second one stops at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb
from typing import Any

import torch

from . import processes
from .parts import sampler_of


class Stop:
    """Whether a signal has asked for a stop, and loaders that then end with KeyboardInterrupt after their batch."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen while the context lasts; elsewhere than in the main thread no signal arrives, and nothing changes.

        A signal that is ignored, as a shell has its background jobs ignore Ctrl-C, stays so.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            before = {number: old for number, old in found.items() if old not in (None, signal.SIG_IGN)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def request(number: int, frame: Any) -> None:
            self.requested = True
            restore()  # the next signal does what it did before

        for number in before:
            signal.signal(number, request)
        try:
            yield
        finally:
            restore()

    def agreed(self, batch: int) -> bool:
        """Whether to stop after this batch; several processes agree on it, on CUDA every 16 batches."""
        if processes.count() == 1:
            return self.requested
        device = processes.device()
        if device.type == "cuda" and batch % 16:
            return False
        return bool(processes.add_up(torch.tensor(float(self.requested), device=device)))

    def caused(self, error: BaseException) -> bool:
        """Whether an error is the stop itself, or that the signal has reached a loader's workers as well."""
        workers = self.requested and isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        return workers or isinstance(error, KeyboardInterrupt)


class Stoppable:
    """A loader that raises KeyboardInterrupt when a stop is asked for and its last batch has been worked on."""

    def __init__(self, loader: Any, stop: Stop) -> None:
        self.loader, self.stop, self.parts = loader, stop, getattr(loader, "parts", 1)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader the epoch if it wants to know."""
        for part in (self.loader, sampler_of(self.loader)):  # as torch's DistributedSampler does
            tell = getattr(part, "set_epoch", None)
            if tell is not None:
                tell(epoch)

    def __iter__(self) -> Iterator[Any]:
        try:
            for number, batch in enumerate(self.loader):
                yield batch
                if self.stop.agreed(number):
                    raise KeyboardInterrupt
        except (ConnectionError, EOFError) as error:
            if not any("multiprocessing" in frame.filename for frame in extract_tb(error.__traceback__)):
                raise  # the dataset's own
            time.sleep(1)  # torch names the dead worker in a signal handler, which may be yet to run
            message = f"a DataLoader worker exited unexpectedly while it handed a batch over ({error})"
            raise RuntimeError(message) from error
