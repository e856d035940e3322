"""ReduceLROnPlateau: built for the command line, and replayed on a record, as it was or with other options."""

import math

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .checks import check_real, check_whole
from .history import History
from .schedule import step_epoch


def make_plateau(
    optimizer: Optimizer, *, factor: float = 0.1, patience: int = 3, threshold: float = 1e-4
) -> ReduceLROnPlateau:
    """Build the schedule that multiplies the rate by `factor` after more than `patience` epochs without progress.

    Progress is a loss lower than the best one by the share `threshold` of it.

    Raises:
        ValueError: a number is out of range.
    """
    _check_options(factor, patience, threshold)
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=threshold)


def plateau_rates(
    history: History, *, factor: float | None = None, patience: int | None = None, threshold: float | None = None
) -> list[float]:
    """Return the rate that ReduceLROnPlateau would have set in each epoch, had it these options, for `plot_schedule`.

    It is given the losses, or accuracies, of the run as it was. So the first cut is where it would have been; a run
    that was cut there had other losses from then on, and the cuts after it are a guess.

    Args:
        history: of a run whose scheduler was ReduceLROnPlateau.
        factor: what a cut multiplies the rate by, 0 to 1; None is the run's own, as for the others.
        patience: epochs without an improvement that are borne before a cut.
        threshold: least improvement that counts, as a share of the best loss unless the run's was absolute.

    Raises:
        ValueError: an option is out of range, or the run had another scheduler.
        TypeError: it is no history.
    """
    if not isinstance(history, History):
        raise TypeError(f"plateau_rates takes the history that fit returned, not {type(history).__name__}")
    kind = history.settings.get("scheduler", {}).get("class", "no scheduler")
    if kind != "ReduceLROnPlateau":
        raise ValueError(
            f"the run had {kind}, at whose rates the losses say nothing of where "
            "ReduceLROnPlateau would have cut; give the history of a run by ReduceLROnPlateau"
        )
    options = {"factor": factor, "patience": patience, "threshold": threshold}
    asked = {name: value for name, value in options.items() if value is not None}
    scheduler = {**history.settings["scheduler"], **asked}
    relative = scheduler["threshold_mode"] == "rel"
    _check_options(scheduler["factor"], scheduler["patience"], scheduler["threshold"], 1 if relative else math.inf)
    return replay({**history.settings, "scheduler": scheduler}, history.rows)


def replay(settings: dict, rows: list[dict]) -> list[float]:
    """Return the rate each epoch should have ended at, from ReduceLROnPlateau's options and the recorded tests.

    Args:
        settings: of a history whose scheduler is a ReduceLROnPlateau.
        rows: of that history.
    """
    scheduler, warmup = settings["scheduler"], settings.get("warmup", 0)
    start = settings["optimizer"]["group 0"]["lr"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=start)
    kept = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    plateau = ReduceLROnPlateau(optimizer, min_lr=scheduler["min_lrs"][0], **{name: scheduler[name] for name in kept})
    rates = []
    for row in rows:
        if row["epoch"] <= warmup:
            rates.append(start * row["epoch"] / warmup)
            continue
        rates.append(optimizer.param_groups[0]["lr"])
        step_epoch(plateau, row)
    return rates


def _check_options(factor: float, patience: int, threshold: float, below: float = 1) -> None:
    check_real("factor", factor, 0, 1, open_low=True)
    check_whole("patience", patience, 0)
    check_real("threshold", threshold, 0, below)
