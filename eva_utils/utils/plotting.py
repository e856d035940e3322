"""Records in, figures out: galleries, the confusion matrix, augmentations, and the figures of two more files.

Nothing here computes a prediction, shows a window or touches matplotlib's settings. A figure takes its
background and its text colour from the style in force, light or dark; in a notebook it is shown once, as
the value of its cell.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .batches import check_classes
from .cam_figures import draw_gradcam, plot_gradcam
from .checks import check_data, check_whole
from .curves import plot_history, plot_lr_find, plot_schedule
from .figures import BLUE, ORANGE, WIDTH, new_figure, shorten, wrap
from .panels import check_records, heading, hide, show_image
from .predictions import Predictions
from .transforms import Normalize, denormalize, step_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "draw_gradcam",
    "plot_augmentations",
    "plot_confusion",
    "plot_gradcam",
    "plot_history",
    "plot_images",
    "plot_lr_find",
    "plot_schedule",
]


def plot_confusion(predictions: Any, data: Any) -> "Figure":
    """Draw the confusion matrix: a row a true class, coloured by the root of its share of the row.

    Of up to 20 classes the counts are written in; of more than 76 one in so many is named.

    Args:
        predictions: what `predict` returned.
        data: what `load_data` returned; names the classes.

    Raises:
        TypeError: the arguments are something else.
        ValueError: the model has more or fewer outputs than the data has classes.
    """
    from matplotlib.colors import PowerNorm

    if not isinstance(predictions, Predictions):
        raise TypeError(f"plot_confusion takes what predict returned, not {type(predictions).__name__}")
    check_data(data, "classes")
    check_classes(predictions.probabilities.shape[1], data.classes)
    counts = predictions.confusion()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    size = len(counts)
    side = min(12.0, max(4.0, 1.6 + 0.62 * size))
    figure, ((axis,),) = new_figure(1, 1, side * 0.92, side)
    roots = PowerNorm(0.5, vmin=0, vmax=1)  # evenly, a share of 3% would look like none
    shown = axis.imshow(shares.numpy(), cmap="cividis", norm=roots, origin="upper")
    axis.grid(False)  # of a style, whose lines would go through the counts
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the true class")
    fontsize = min(9, max(7, 440 / size))
    step = -(-size // 76)  # names nearer to each other could not be read
    named = range(0, size, step)
    names = [shorten(data.classes[number], 18, end=0.5) for number in named]
    axis.set_xticks(named, names, rotation=90, fontsize=fontsize)
    axis.set_yticks(named, names, fontsize=fontsize)
    note = "" if step == 1 else f" (one class in {step} is named)"
    axis.set(xlabel=f"predicted{note}", ylabel=f"actual{note}")
    axis.set_title(f"{predictions.accuracy:.2f}% of {len(predictions):,} images are right", fontsize=min(12, 6 + size))
    if size <= 20:
        for row in range(size):
            for column in range(size):
                colour = "black" if shares[row, column] > 0.25 else "white"
                text = str(int(counts[row, column]))
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return figure


def plot_images(records: Sequence[Any], data: Any) -> "Figure":
    """Draw images with predicted and actual class, confidence and index.

    Args:
        records: of `predictions.wrong(n)` or `.correct(n)`; where there are fewer than n, the figure says so.
        data: what `load_data` returned; gives class names, mean and standard deviation.

    Raises:
        TypeError: the arguments are something else.
        ValueError: a record is of a class that the data does not have.
    """
    check_records(records, data)
    columns = min(5, len(records)) or 5
    rows = max(1, -(-len(records) // columns))
    width = WIDTH * max(4, columns) / 5  # of four at least, for the title
    said = [
        (_named("predicted", data.classes[record.predicted]), _named("actual", data.classes[record.target]))
        for record in records
    ]
    breaks = max((text.count("\n") for pair in said for text in pair), default=0)
    title = wrap(heading(records, data.classes), 64 * width, 12)
    figure, axes = new_figure(rows, columns, 0.5 + 0.2 * title.count("\n") + (2.7 + 0.28 * breaks) * rows, width)
    figure.suptitle(title, fontsize=12)
    cells = [axis for row in axes for axis in row]
    for axis, record, (predicted, actual) in zip(cells, records, said, strict=False):
        right = record.predicted == record.target
        show_image(axis, denormalize(record.image, data.mean, data.std))
        confidence = f"confidence {100 * record.confidence:.0f}%"
        axis.set_title(f"{predicted}\n{confidence}", fontsize=9, color=BLUE if right else ORANGE)
        axis.set_xlabel(f"#{record.index}" if right else f"{actual}\n#{record.index}", fontsize=9)
    hide(cells[len(records) :])
    return figure


def _named(kind: str, name: object) -> str:
    """Return "actual: cat" as a fifth of the width has room for it, a name that is too long below."""
    points = 64 * WIDTH / 5  # of the 72 of an inch: neighbours keep apart
    line = wrap(f"{kind}: {name}", points, 9)
    return f"{kind}:\n{wrap(name, points, 9)}" if "\n" in line else line


def plot_augmentations(loader: Any, n: int = 16) -> "Figure":
    """Draw the first images of the loader's pass as they are, and below each as the model is shown it.

    Args:
        loader: `data.train` of `load_data`.
        n: how many images, of the first batch at most.

    Raises:
        TypeError: the loader is none of `load_data`'s, so that the untouched images are not known.
        ValueError: n is below 1.
    """
    if not hasattr(loader, "order") or not hasattr(loader, "transform"):
        raise TypeError(f"plot_augmentations needs a loader of load_data, as data.train, not {type(loader).__name__}")
    check_whole("n", n, 1)
    normalization = next(part for part in loader.transform if isinstance(part, Normalize))
    seen = next(iter(loader))[0][:n].cpu()
    columns = min(8, len(seen))
    rows = -(-len(seen) // columns)
    figure, axes = new_figure(2 * rows, columns, 0.5 + 2.6 * rows)
    steps = " → ".join(name for part in loader.transform for name in step_names(part))
    figure.suptitle(f"Epoch {loader.epoch}, as stored and as the model sees it: {steps}", fontsize=11)
    for place, (position, image) in enumerate(zip(loader.order().tolist(), seen, strict=False)):
        row, column = divmod(place, columns)
        show_image(axes[2 * row][column], loader.images[position].cpu() / 255)
        show_image(axes[2 * row + 1][column], denormalize(image, normalization.mean, normalization.std))
        axes[2 * row][column].set_title(f"#{position}", fontsize=8)
    hide([axis for row in axes[-2:] for axis in row[(len(seen) - 1) % columns + 1 :]])
    return figure
