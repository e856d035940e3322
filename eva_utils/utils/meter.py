"""Loss and accuracy over an epoch, summed on the device and read only when asked."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .failures import overflow_advice
from .processes import add_up


class Score(NamedTuple):
    """What one pass over a loader came to.

    Attributes:
        loss: mean over the samples, with class weights a weighted one, and without those that the loss ignores.
        accuracy: in percent of all samples, 0 to 100.
        correct, samples: the counts behind it.
        lr: of training the rate of the last step, else None.
    """

    loss: float
    accuracy: float
    correct: int
    samples: int
    lr: float | None = None


def make_row(epoch: int, trained: Score, tested: Score, seconds: float, dtype: torch.dtype) -> dict:
    """Return the row of the record for an epoch that was computed in `dtype`.

    Raises:
        FloatingPointError: the test loss is NaN or infinite, and says nothing.
    """
    if not math.isfinite(tested.loss):
        raise FloatingPointError(
            f"the test loss is {tested.loss}; lower the learning rate, or look for NaN in the test images"
            + overflow_advice(dtype)
        )
    return {
        "epoch": epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "lr": trained.lr,
        "seconds": seconds,
    }


class Meter:
    """Sums of loss and of correct predictions; a batch's mean loss counts by what it was divided by."""

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.loss = torch.zeros((), dtype=wide, device=device)
        self.weight = torch.zeros_like(self.loss)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, weight: Tensor | float) -> None:
        """Add a batch: its mean loss (), logits (N, C), labels int64 (N,), and the loss's divisor, most often N."""
        total = loss.detach() * weight
        # Of a batch without a label that counts the mean is 0/0, and adds nothing.
        self.loss += torch.where(weight > 0, total, 0) if isinstance(weight, Tensor) else total
        self.weight += weight
        self.correct += (logits.detach().argmax(dim=1) == labels).sum()
        self.samples += len(labels)

    def score(self) -> Score:
        """Return the score of this process's batches so far; this waits for the device."""
        if not self.samples:
            raise ValueError("the loader yielded no batch; it must yield its batches anew at each pass")
        correct = int(self.correct)
        loss = float(self.loss / self.weight)
        return Score(loss, 100 * correct / self.samples, correct, self.samples)

    def total(self) -> Score:
        """Return the score of all processes' batches; every process must call it."""
        samples = torch.full_like(self.correct, self.samples)
        self.loss, self.weight = add_up(torch.stack([self.loss, self.weight]))
        self.correct, samples = add_up(torch.stack([self.correct, samples]))
        self.samples = int(samples)
        return self.score()


class FirstBad:
    """The first batch whose loss is NaN or infinite, remembered on the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.batch, self.dtype = torch.full((), -1, device=device), dtype
        self.weight = torch.ones((), device=device)

    def update(self, loss: Tensor, batch: int, weight: Tensor | float = 1, ignored: Tensor | bool = False) -> None:
        """Look at the loss () of a batch, its divisor, and whether all its labels are ignored: gradients are 0 then."""
        bad = ~(torch.isfinite(loss.detach()) | ignored) & (self.batch < 0)
        self.batch = torch.where(bad, batch, self.batch)
        if isinstance(weight, Tensor):
            self.weight = torch.where(bad, weight, self.weight)

    def check(self) -> None:
        """Raise FloatingPointError if there was such a batch; this waits for the device."""
        batch = int(self.batch)
        if batch >= 0 and not self.weight:
            raise FloatingPointError(
                f"the loss is 0/0 at batch {batch}, whose labels all have class weight 0; give their classes a weight "
                "above 0, or leave their images out"
            )
        if batch >= 0:
            raise FloatingPointError(
                f"the loss is NaN or infinite at batch {batch}; lower the learning rate, or look for NaN in the images"
                + overflow_advice(self.dtype)
            )
