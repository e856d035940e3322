"""Schedules that do not fit the run: what is refused or warned of before any work."""

import math
import warnings

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .checks import check_whole
from .parts import PER_BATCH_SCHEDULERS, inner_schedulers


def check_scheduler(
    scheduler: LRScheduler | None, optimizer: torch.optim.Optimizer | None, epochs: int, batches: int
) -> None:
    """Raise unless a scheduler, if there is one, is of this optimizer and, if one-cycle, of this length.

    Raises:
        TypeError: it is no scheduler.
        ValueError: it is of another optimizer, or of fewer steps than the run.
    """
    if scheduler is None:
        return
    check_belongs(scheduler, optimizer)
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < epochs * batches:
        raise ValueError(
            f"OneCycleLR was built for {scheduler.total_steps} steps and the run takes {epochs} epochs of "
            f"{batches} batches; build it with epochs={epochs}, steps_per_epoch={batches}"
        )
    for inner in inner_schedulers(scheduler):
        if isinstance(inner, OneCycleLR) and inner.total_steps > epochs:
            raise ValueError(
                f"a OneCycleLR of {inner.total_steps} steps inside {type(scheduler).__name__} would be stepped once an "
                f"epoch, {epochs} times; pass it alone, it is then stepped after every batch"
            )


def check_belongs(scheduler: LRScheduler, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise TypeError unless it is a scheduler, ValueError unless it is one of this optimizer."""
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler is one of torch.optim.lr_scheduler, built with the optimizer, not {scheduler!r}")
    if scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer; pass the optimizer it was built with")


def count_steps_left(scheduler: LRScheduler, steps: int, kind: str) -> int:
    """Return how many steps more than these a one-cycle schedule has left, 0 of any other; raise if it has fewer."""
    if not isinstance(scheduler, OneCycleLR):
        return 0
    left = scheduler.total_steps - scheduler.last_epoch
    if left < steps:
        raise ValueError(
            f"OneCycleLR has {left} of its {scheduler.total_steps} steps left and the {kind} takes {steps}; build "
            "optimizer and scheduler anew before each run"
        )
    return left - steps


def check_unscheduled(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a one-cycle schedule that is not passed is at its first rate; warn of another one."""
    for group in optimizer.param_groups:
        rate, first = float(group["lr"]), float(group.get("initial_lr", group["lr"]))
        if "max_lr" in group and math.isclose(rate, first):
            raise ValueError(
                "a OneCycleLR was built on this optimizer and not passed, so the run would begin at its lowest rate; "
                "pass scheduler= as well, or build the optimizer anew"
            )
        if not math.isclose(rate, first):
            warnings.warn(
                f"the optimizer's rate is {rate:g}, and a schedule that is not passed was built on it at {first:g}; if "
                "that is not meant, pass scheduler= as well, or build the optimizer anew",
                stacklevel=4,
            )
            return


def warn_of_schedule(scheduler: LRScheduler, epochs: int, warmup: int, batches: int) -> None:
    """Warn of a cosine of another length than the run's, and of a plateau that waits too long for it."""
    if isinstance(scheduler, CosineAnnealingLR):
        _warn_of_cosine(scheduler, epochs, warmup, batches)
    elif isinstance(scheduler, ReduceLROnPlateau):
        _warn_of_patience(scheduler, epochs - warmup)


def _warn_of_patience(scheduler: ReduceLROnPlateau, epochs: int) -> None:
    """Warn if the second cut of the rate cannot come before the last of ten epochs or more."""
    second = 1 + 2 * (scheduler.patience + 1) + scheduler.cooldown  # the epoch after which it comes at the earliest
    if 10 <= epochs <= second:
        warnings.warn(
            f"ReduceLROnPlateau(patience={scheduler.patience}) bears {scheduler.patience} epochs without an "
            f"improvement, so that in {epochs} epochs it can cut the rate once at most; patience={epochs // 10} would "
            "leave time for more",
            stacklevel=4,
        )


def _warn_of_cosine(scheduler: CosineAnnealingLR, epochs: int, warmup: int, batches: int) -> None:
    """Warn if a cosine ends long before or after the run, as one does that counts batches."""
    length, steps = scheduler.T_max, epochs - warmup
    if length < steps - 1:
        course = f"rises again after {length} of the {steps} epochs"
    elif length >= 10 * epochs or length == epochs * batches > epochs:
        course = "hardly falls"
    else:
        return
    warnings.warn(
        f"CosineAnnealingLR(T_max={length}) steps once an epoch, so the rate {course}; for a run of this length it is "
        f"T_max={steps}",
        stacklevel=4,
    )


def check_rate(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
    """Raise ValueError if the learning rate is 0 and no schedule raises it."""
    if isinstance(scheduler, ReduceLROnPlateau) and not any(float(group["lr"]) for group in optimizer.param_groups):
        raise ValueError("the optimizer's learning rate is 0, so nothing would be learnt; give a higher one")


def check_steps_left(scheduler: LRScheduler, steps: int) -> None:
    """Raise ValueError if a one-cycle schedule has fewer steps left than the run takes; warn if it has more."""
    left = steps + count_steps_left(scheduler, steps, "run")
    if left > steps:
        warnings.warn(
            f"OneCycleLR has {left} steps left and the run takes {steps}, so the rate does not come down in it; build "
            f"it with total_steps={steps}, epochs times len(train_loader), unless more epochs are to follow",
            stacklevel=3,
        )


def check_warmup(warmup: int, epochs: int, scheduler: LRScheduler | None) -> int:
    """Return the warmup's epochs, or raise ValueError unless epochs at the full rate follow and the scheduler waits."""
    warmup = check_whole("warmup", warmup, 0)
    if warmup >= epochs:
        raise ValueError(
            f"warmup={warmup} leaves none of epochs={epochs} at the full rate; make it shorter or train longer"
        )
    if warmup and isinstance(scheduler, PER_BATCH_SCHEDULERS):
        raise ValueError(f"{type(scheduler).__name__} sets the rate of every batch; leave warmup out")
    return warmup
