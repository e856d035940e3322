"""Curves: loss and accuracy by epoch, learning rates by step, the loss by learning rate."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import BLUE, COLOURS, GREY, ORANGE, WIDTH, fit, new_figure, tidy, wrap
from .history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = (".", "x", "^", "s")  # a mark for every so many runs as there are colours


def _count_along_x(axis: "Axes", count: int) -> None:
    """Set whole numbers along the x axis, 1 alone where there is nothing else."""
    axis.locator_params(axis="x", integer=True)
    if count == 1:
        axis.set_xticks([1])


def _drops(rates: list[float]) -> list[int]:
    """Return the places of a rate that falls, having held the place before or holding the place after."""
    holds = [False, *(now == before for before, now in pairwise(rates)), False]  # whether it is as one place before
    return [at for at in range(1, len(rates)) if rates[at] < rates[at - 1] and (holds[at - 1] or holds[at + 1])]


def _line(number: int, points: int) -> dict[str, Any]:
    """Return colour and marks that tell a run of so many points from the others."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
        "markevery": max(1, points // 30),
    }


def _label(name: object, width: float, more: str = "") -> str:
    """Return the name of a run, and more, as a column of a legend that is half a figure of this width has room for it.

    Names of runs differ at their ends. Of a label that begins with an underscore matplotlib says nothing, hence the
    space before it.
    """
    return f" {fit(f'{name}', 36 * width - 60 - 4.6 * len(more), 8, end=0.5)}{more}"


def _legend_below(figure: "Figure", axis: "Axes", columns: int) -> None:
    """Put the legend of an axis below the figure, where it covers no curve."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=8)


def plot_history(history: History | Mapping[str, History], tested: str = "test") -> "Figure":
    """Draw loss and accuracy of training and test by epoch, with best epochs and drops of the rate marked.

    A rate drops if it falls and held before or holds then; that of one cycle falls all the time.

    Args:
        history: what `fit` returned, or several by name, to compare them.
        tested: what the images are called that the run was tested on, as "validation".

    Raises:
        TypeError: it is something else.
        ValueError: there is none, or one without a finished epoch.
    """
    from matplotlib import rcParams

    for folder in history.values() if isinstance(history, Mapping) else [history]:
        if isinstance(folder, str | Path):
            raise TypeError(f"plot_history takes the record of a run; read it with eva.History.load({str(folder)!r})")
    if not isinstance(history, History | Mapping):
        raise TypeError(
            f"plot_history takes what fit returned, or several by name, not {type(history).__name__}; compare runs as "
            "plot_history({'batch norm': history, 'layer norm': other})"
        )
    if not isinstance(tested, str):
        raise TypeError(
            f"tested is what the images are called, as 'validation', not {type(tested).__name__}; compare runs as "
            "plot_history({'batch norm': history, 'layer norm': other})"
        )
    runs = {"": history} if isinstance(history, History) else dict(history)
    for name, run in runs.items():
        if not isinstance(run, History):
            raise TypeError(f"plot_history takes what fit returned, not {type(run).__name__} for {name!r}")
    if not runs:
        raise ValueError("there is no history to draw; pass one, or several by name")
    alone = isinstance(history, History)
    figure, (axes,) = new_figure(1, 2, 4.0 + (0 if alone else 0.16 * -(-len(runs) // 2)))
    for number, (name, run) in enumerate(runs.items()):
        best = f"best: {run.best['test_accuracy']:.2f}%, epoch {run.best['epoch']}"
        line = _line(number, len(run))
        if alone:
            _draw_run(axes, run, line, line | {"color": ORANGE}, ("train", tested, best))
            _draw_drops(axes, run)
        else:
            _draw_run(axes, run, line, line, ("_", _label(name, WIDTH, f", {best}"), "_"))
    for axis, label in zip(axes, ("loss (mean over samples)", "accuracy (%)"), strict=True):
        axis.set_xlabel("epoch")
        axis.set_ylabel(wrap(label, 180, rcParams["axes.labelsize"]))  # points, of the axis's 190
        _count_along_x(axis, max(len(run) for run in runs.values()))
        tidy(axis)
    if not alone:
        axes[0].plot([], [], color=GREY, linestyle="--", label="train")
        axes[0].plot([], [], color=GREY, label=tested)
    _legend_below(figure, axes[0], 4 if alone else 2)
    return figure


def _draw_run(
    axes: Sequence["Axes"], run: History, train_line: dict[str, Any], test_line: dict[str, Any], labels: Sequence[str]
) -> None:
    """Draw loss and accuracy of a run, its best epoch in a ring; the labels are of training, test and best epoch."""
    epochs = [row["epoch"] for row in run.rows]
    for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
        train, test = ([row[f"{part}_{kind}"] for row in run.rows] for part in ("train", "test"))
        axis.plot(epochs, train, linestyle="--", label=labels[0], **train_line)
        axis.plot(epochs, test, label=labels[1], **test_line)
        (ring,) = axis.plot(run.best["epoch"], run.best[f"test_{kind}"], "o", color=test_line["color"], label=labels[2])
        ring.set(markersize=11, fillstyle="none")
        if kind == "loss" and max(test) > 10 * max(train) and min(train + test) > 0:
            axis.set_yscale("log")  # else one diverged epoch flattens all the others


def _draw_drops(axes: Sequence["Axes"], run: History) -> None:
    """Draw a line before each epoch at which the rate drops; the first is labelled."""
    for axis in axes:
        for number, place in enumerate(_drops([row["lr"] for row in run.rows])):
            line = axis.axvline(run.rows[place]["epoch"] - 0.5, color=GREY, linewidth=1, linestyle=":")
            line.set_label("_" if number else "rate drops")


def plot_schedule(rates: Sequence[float] | Mapping[str, Sequence[float]] | History, unit: str = "step") -> "Figure":
    """Draw the learning rate by step, or by epoch.

    Args:
        rates: one rate a step, several such lists by name, or a history, whose rates are by epoch.
        unit: what is counted.

    Raises:
        TypeError: a scheduler was given, or no list of rates.
        ValueError: there is no rate.
    """
    if hasattr(rates, "optimizer"):
        raise TypeError(
            "plot_schedule takes rates; plot_schedule(eva.learning_rates(scheduler, steps)) draws a scheduler"
        )
    if isinstance(rates, History):
        rates, unit = [row["lr"] for row in rates.rows], "epoch"
    try:
        named = rates if isinstance(rates, Mapping) else {"": rates}
        runs = {name: [float(rate) for rate in values] for name, values in named.items()}
    except (TypeError, ValueError):
        raise TypeError(
            f"plot_schedule takes a list of rates, several by name, or a history, not {rates!r:.60}"
        ) from None
    if not all(len(values) for values in runs.values()) or not runs:
        raise ValueError("there is no rate to draw; pass at least one for each name")
    width, rows = 6.0, -(-len(runs) // 2) if len(runs) > 1 else 0
    figure, ((axis,),) = new_figure(1, 1, 3.2 + 0.16 * rows, width)
    for number, (name, values) in enumerate(runs.items()):
        drawn = "steps-mid" if len(values) <= 60 else "default"
        line = _line(number, len(values))
        if number < len(COLOURS) and len(values) > 60:
            line["marker"] = ""  # a dot would seem to be a step, and the colour is its own
        axis.plot(range(1, len(values) + 1), values, drawstyle=drawn, label=_label(name, width), **line)
    axis.set(xlabel=unit, ylabel="learning rate")
    rates_of_all = [rate for values in runs.values() for rate in values]
    if any(map(_drops, runs.values())) and 0 < 50 * min(rates_of_all) < max(rates_of_all):
        axis.set_yscale("log")  # else the later drops of a rate that is cut to a tenth each time cannot be seen
    _count_along_x(axis, max(len(values) for values in runs.values()))
    tidy(axis)
    if len(runs) > 1:
        _legend_below(figure, axis, 2)
    return figure


def plot_lr_find(curve: Any) -> "Figure":
    """Draw the smoothed loss by learning rate, with the suggested rate marked if there is one.

    Args:
        curve: what `lr_find` returned.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(curve, tuple) or len(curve) != 3:
        raise TypeError(f"plot_lr_find takes what lr_find returned, not {type(curve).__name__}")
    rates, losses, suggestion = curve
    figure, ((axis,),) = new_figure(1, 1, 3.6, 6.0)
    axis.plot(rates, losses, color=BLUE)
    if suggestion is None:
        axis.set_title("the loss does not fall by a tenth: no suggestion", fontsize=9)
    else:
        axis.axvline(suggestion, color=ORANGE, linestyle="--", label=f"steepest slope: {suggestion:.1e}")
        axis.legend(fontsize=8, framealpha=0.6)
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)")
    low, high = min(losses), max(losses[0], statistics.median(losses))
    axis.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.5 * (high - low) + 1e-3)  # not the divergence at the end
    tidy(axis)
    return figure
