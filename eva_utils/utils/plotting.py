"""Records in, figures out. Nothing here computes a prediction, shows a window or touches matplotlib's settings."""

from itertools import pairwise
from typing import TYPE_CHECKING

from .history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two of the Okabe-Ito colours, told apart by every kind of colour vision (Okabe and Ito, 2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"


def _new_figure(columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """Return a white figure with its axes in a row; closed, so that a notebook shows it once, as the cell's value."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    figure.patch.set_facecolor("white")
    plt.close(figure)
    return figure, list(axes[0])


def plot_history(history: History) -> "Figure":
    """Draw loss and accuracy of training and test by epoch, with the best epoch and the drops of the rate marked.

    Raises:
        ValueError: no epoch has finished.
    """
    best, rows = history.best, history.rows
    epochs = [row["epoch"] for row in rows]
    drops = [now["epoch"] for before, now in pairwise(rows) if now["lr"] < before["lr"]]
    figure, axes = _new_figure(2, 10, 3.8)
    for axis, name, unit in zip(axes, ("loss", "accuracy"), ("loss (mean over samples)", "accuracy (%)"), strict=True):
        for number, epoch in enumerate(drops):
            axis.axvline(epoch - 0.5, color=GREY, linewidth=0.8, linestyle=":", label=None if number else "rate drops")
        axis.plot(epochs, [row[f"train_{name}"] for row in rows], color=BLUE, linestyle="--", marker=".", label="train")
        axis.plot(epochs, [row[f"test_{name}"] for row in rows], color=ORANGE, marker=".", label="test")
        axis.plot(best["epoch"], best[f"test_{name}"], "o", color=ORANGE, markersize=11, fillstyle="none",
                  label=f"best epoch, {best['epoch']}: {best['test_accuracy']:.2f}%")  # fmt: skip
        axis.set(xlabel="epoch", ylabel=unit)
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure
