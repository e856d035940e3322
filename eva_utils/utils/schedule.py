"""What sets the learning rate while a run trains: the warmup, and the scheduler's step at its time."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .history import History
from .parts import PER_BATCH_SCHEDULERS
from .schedule_checks import check_belongs, count_steps_left


def set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Set the learning rate of each group of an optimizer."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Warmup:
    """Raises the learning rates linearly over so many steps, the first being 1 / steps of the full rate.

    It fits `train(scheduler=)`, which steps it after every batch (Goyal et al., 2017, section 2.2,
    https://arxiv.org/abs/1706.02677).

    Args:
        optimizer: its rates are set at once.
        rates: the full rate of each of its groups.
        steps: of the whole warmup.
        done: steps that were made before.
    """

    def __init__(self, optimizer: Optimizer, rates: list[float], steps: int, done: int = 0) -> None:
        self.optimizer, self.rates, self.steps, self.done = optimizer, rates, steps, done - 1
        self.step()

    def step(self) -> None:
        self.done += 1
        share = min(1.0, (self.done + 1) / self.steps)
        set_rates(self.optimizer, [share * rate for rate in self.rates])


def check_per_batch(scheduler: LRScheduler | Warmup | None, optimizer: Optimizer, batches: int) -> None:
    """Raise unless a scheduler, if there is one, can be stepped after each of so many batches.

    Raises:
        TypeError: it is no scheduler, or follows a metric.
        ValueError: it is of another optimizer, or has fewer steps left.
    """
    if scheduler is None or isinstance(scheduler, Warmup):
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "train steps its scheduler after every batch; step ReduceLROnPlateau yourself, with the loss that test "
            "returns"
        )
    check_belongs(scheduler, optimizer)
    count_steps_left(scheduler, batches, "epoch")


def per_batch_scheduler(
    scheduler: LRScheduler, optimizer: Optimizer, history: History, epoch: int, warmup: int, batches: int
) -> LRScheduler | Warmup | None:
    """Return what sets the rate within this epoch, if anything does."""
    if isinstance(scheduler, PER_BATCH_SCHEDULERS):
        return scheduler
    if epoch <= warmup:
        return Warmup(optimizer, history.start_rates, warmup * batches, (epoch - 1) * batches)
    return None


@contextmanager
def ignoring_order() -> Iterator[None]:
    """Step a scheduler though the optimizer may not have stepped, as where float16's first gradients overflow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        yield


def step_epoch(scheduler: LRScheduler, row: dict) -> None:
    """Step a scheduler at the end of an epoch, on its row of the record."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(row["test_loss"] if scheduler.mode == "min" else row["test_accuracy"])
    else:
        scheduler.step()
