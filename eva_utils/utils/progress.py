"""What is shown of an epoch: its progress bar and its lines of the log."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from .meter import Score

REFRESH_SECONDS = 0.5


class ProgressBar:
    """An epoch's progress: a live bar where someone watches, otherwise its last line; nothing without a log."""

    def __init__(self, batches: int, log: Callable[[str], Any] | None) -> None:
        self.live = log is print and _is_watched(sys.stdout)
        self.log, self.refreshed = log, time.monotonic()
        file = sys.stdout if self.live else io.StringIO()
        options = {"mininterval": REFRESH_SECONDS, "ascii": not _writes_blocks(sys.stdout)}
        self.bar = None if log is None else tqdm(total=batches, file=file, **options)

    def __enter__(self) -> "ProgressBar":
        return self

    @property
    def is_due(self) -> bool:
        """Whether to read the score now: every half second where the bar is live."""
        return self.bar is not None and self.live and time.monotonic() - self.refreshed >= REFRESH_SECONDS

    def describe(self, text: str) -> None:
        self.refreshed = time.monotonic()
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def __exit__(self, kind: object, *_: object) -> None:
        if self.bar is None:
            return
        # Without a rate, the line gives the epoch's mean and not that of the last few batches.
        line = tqdm.format_meter(**{**self.bar.format_dict, "rate": None})
        self.bar.close()
        if not self.live and self.log is not None and kind is None:
            self.log(line)


def _is_watched(stream: Any) -> bool:
    return (hasattr(stream, "isatty") and stream.isatty()) or type(stream).__module__.startswith("ipykernel")


def _writes_blocks(stream: Any) -> bool:
    """Whether the bar's characters can be written, as they cannot where Windows redirects the output to a file."""
    try:
        "▏█".encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def describe_training(score: Score, number: int, rate: float) -> str:
    """Return what the bar says after a batch, by its number and its learning rate."""
    return f"Loss={score.loss:.4f} Batch_id={number} LR={rate:.5f} Accuracy={score.accuracy:.2f}"


def describe_test(score: Score) -> str:
    """Return the line of a test."""
    share = f"{score.correct}/{score.samples} ({score.accuracy:.2f}%)"
    return f"Test set: Average loss: {score.loss:.4f}, Accuracy: {share}"
