"""Records in, figures out: galleries, Grad-CAM panels, the confusion matrix, and the figures of `curves`.

Nothing here computes a prediction, shows a window or touches matplotlib's settings. A figure takes its
background and its text colour from the style in force, light or dark; in a notebook it is shown once, as
the value of its cell.
"""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batches import check_classes
from .checks import check_whole
from .curves import plot_history, plot_lr_find, plot_schedule
from .figures import BLUE, ORANGE, WIDTH, new_figure, shorten
from .gradcam import GradCAM, overlay
from .names import plural
from .predictions import Predictions
from .transforms import Normalize, denormalize, unclamped_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

COLOUR_KEY = "dark blue: nothing, yellow: most"


def plot_confusion(predictions: Any, data: Any) -> "Figure":
    """Draw the confusion matrix: a row a true class, coloured by share of the row, with the counts written in.

    Args:
        predictions: what `predict` returned.
        data: what `load_data` returned; names the classes.

    Raises:
        ValueError: the model has more or fewer outputs than the data has classes.
    """
    if not isinstance(predictions, Predictions):
        raise TypeError(f"plot_confusion takes what predict returned, not {type(predictions).__name__}")
    check_classes(predictions.probabilities.shape[1], data.classes)
    counts = predictions.confusion()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    size = len(counts)
    side = min(12.0, max(4.0, 1.6 + 0.62 * size))
    figure, ((axis,),) = new_figure(1, 1, side * 0.92, side)
    shown = axis.imshow(shares.numpy(), cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the true class")
    names = [shorten(name, 18) for name in data.classes]
    small = min(9, max(2.5, 440 / size))
    axis.set_xticks(range(size), names, rotation=90, fontsize=small)
    axis.set_yticks(range(size), names, fontsize=small)
    axis.set(xlabel="predicted", ylabel="actual", title=f"{predictions.accuracy:.2f}% of {len(predictions)} images")
    if size <= 20:
        for row in range(size):
            for column in range(size):
                colour = "black" if shares[row, column] > 0.55 else "white"
                text = str(int(counts[row, column]))
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return figure


def plot_images(records: Sequence[Any], data: Any) -> "Figure":
    """Draw images with predicted and actual class, confidence and index.

    Args:
        records: of `predictions.wrong(n)` or `.correct(n)`; where there are fewer than n, the figure says so.
        data: what `load_data` returned; gives class names, mean and standard deviation.
    """
    _check_figure_arguments(records, data)
    columns = 5
    rows = max(1, -(-len(records) // columns))
    figure, axes = new_figure(rows, columns, 0.5 + 2.7 * rows)
    figure.suptitle(_heading(records), fontsize=12)
    cells = [axis for row in axes for axis in row]
    for axis, record in zip(cells, records, strict=False):
        right = record.predicted == record.target
        _show(axis, denormalize(record.image, data.mean, data.std))
        named = f"predicted: {shorten(data.classes[record.predicted], 16)}\nconfidence {100 * record.confidence:.0f}%"
        actual = shorten(data.classes[record.target], 18)
        axis.set_title(named, fontsize=9, color=BLUE if right else ORANGE)
        axis.set_xlabel(f"#{record.index}" if right else f"actual: {actual}\n#{record.index}", fontsize=9)
    _hide(cells[len(records) :])
    return figure


def plot_gradcam(
    model: nn.Module,
    records: Sequence[Any],
    data: Any,
    layers: Sequence[str] | None = None,
    *,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> "Figure":
    """Draw Grad-CAM of the same records: at several layers, or a gallery at one.

    At several layers each image has a row: the image, then overlay and map for the predicted class at each
    layer. At one layer (None: the one `GradCAM` picks) each image is followed by its overlay
    and, where it is misclassified, by the overlay for its true class. A blank map, where nothing at the
    layer speaks for the class, is labelled so. If the model no longer says of the images what the records
    hold, a warning names the image where it differs most.

    Args:
        model: the classifier that made the predictions, with the same weights.
        records: of `predictions.wrong(n)` or `.correct(n)`.
        data: what `load_data` returned.
        layers: names as in `model.named_modules()`.
        reshape: turns a layer's output into a map, as a transformer needs it; see `GradCAM`.

    Raises:
        ValueError: those of `GradCAM`.
    """
    _check_figure_arguments(records, data)
    cam = GradCAM(model, layers, reshape=reshape)
    if not records:
        return draw_gradcam(records, data, {})
    images = torch.stack([record.image for record in records])
    sizes = cam.sizes(images)
    cam = GradCAM(model, list(sizes), reshape=reshape)  # which need not search for a layer again
    maps = cam(images, [record.predicted for record in records])
    _warn_of_another_answer(cam.probabilities(images), records, data.classes)
    true_maps = cam(images, [record.target for record in records]) if len(maps) == 1 else {}
    return draw_gradcam(records, data, maps, true_maps, sizes)


def draw_gradcam(
    records: Sequence[Any],
    data: Any,
    maps: Mapping[str, Tensor],
    true_maps: Mapping[str, Tensor] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> "Figure":
    """Draw Grad-CAM maps that are at hand, as `plot_gradcam` does.

    Args:
        records: the images the maps are of.
        data: has classes, mean and std.
        maps: for the predicted classes, {layer: (N, H, W)}.
        true_maps: for the true classes; only of one layer are they drawn.
        sizes: height and width of each layer's map before it was enlarged, written beside the layer if given.
    """
    if not records:
        figure, axes = new_figure(1, 1, 1.2)
        figure.suptitle(_heading(records), fontsize=12)
        _hide(axes[0])
        return figure
    sides = {layer: f"{height}x{width}" for layer, (height, width) in (sizes or {}).items()}
    if len(maps) > 1:
        return _layer_rows(records, data, maps, sides)
    ((layer, predicted),) = maps.items()
    shown = f"{layer}, {sides[layer]}" if layer in sides else layer
    return _pair_gallery(records, data, shown, predicted, (true_maps or maps)[layer])


def _layer_rows(records: Sequence[Any], data: Any, maps: Mapping[str, Tensor], sides: Mapping[str, str]) -> "Figure":
    columns = 1 + 2 * len(maps)
    cell = WIDTH / columns
    lines = 3 + any(record.predicted != record.target for record in records)
    figure, axes = new_figure(len(records), columns, 0.8 + (cell + 0.135 * lines) * len(records))
    figure.suptitle(f"{_heading(records)}: Grad-CAM for the predicted class\n{COLOUR_KEY}", fontsize=12)
    for number, (row, record) in enumerate(zip(axes, records, strict=True)):
        image = denormalize(record.image, data.mean, data.std)
        _show(row[0], image)
        row[0].set_xlabel(_caption(record, data), fontsize=6.5)
        for place, (layer, layer_maps) in enumerate(maps.items()):
            over, heat = row[1 + 2 * place], row[2 + 2 * place]
            _show_overlay(over, image, layer_maps[number])
            heat.imshow(layer_maps[number].numpy(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            _frame(heat)
            if number % 5 == 0:
                over.set_title(shorten(layer, 14), fontsize=9)
                heat.set_title(f"map {sides.get(layer, '')}".strip(), fontsize=9)
    return figure


def _pair_gallery(records: Sequence[Any], data: Any, layer: str, predicted: Tensor, true: Tensor) -> "Figure":
    any_wrong = any(record.predicted != record.target for record in records)
    cells, groups = (3, 3) if any_wrong else (2, 4)
    rows = -(-len(records) // groups)
    names = [[_wrapped(data.classes[number]) for number in (record.predicted, record.target)] for record in records]
    lines = 3.5 + max(name.count("\n") for pair in names for name in pair) + (not (predicted.any() and true.any()))
    figure, axes = new_figure(rows, cells * groups, 0.8 + (WIDTH / (cells * groups) + 0.14 * lines) * rows)
    figure.suptitle(f"{_heading(records)}: Grad-CAM at {layer}\n{COLOUR_KEY}", fontsize=12)
    for number, record in enumerate(records):
        row, column = divmod(number, groups)
        group = axes[row][cells * column : cells * (column + 1)]
        image = denormalize(record.image, data.mean, data.std)
        _show(group[0], image)
        group[0].set_xlabel(f"#{record.index}", fontsize=8)
        group[1].set_title(f"predicted:\n{names[number][0]}", fontsize=8)
        group[1].set_xlabel(f"{100 * record.confidence:.0f}%", fontsize=8)
        _show_overlay(group[1], image, predicted[number])
        if any_wrong:
            _show_overlay(group[2], image, true[number])
            group[2].set_title(f"actual:\n{names[number][1]}", fontsize=8)
    _hide([axis for row in axes for axis in row][cells * len(records) :])
    return figure


def plot_augmentations(loader: Any, n: int = 16) -> "Figure":
    """Draw the first images of the loader's pass as they are, and below each as the model is shown it.

    Args:
        loader: `data.train` of `load_data`.
        n: how many images, of the first batch at most.

    Raises:
        TypeError: the loader is none of `load_data`'s, so that the untouched images are not known.
    """
    if not hasattr(loader, "order") or not hasattr(loader, "transform"):
        raise TypeError(f"plot_augmentations needs a loader of load_data, as data.train, not {type(loader).__name__}")
    check_whole("n", n, 1)
    normalization = next(part for part in loader.transform if isinstance(part, Normalize))
    seen = next(iter(loader))[0][:n].cpu()
    columns = min(8, len(seen))
    rows = -(-len(seen) // columns)
    figure, axes = new_figure(2 * rows, columns, 0.5 + 2.6 * rows)
    steps = " → ".join(type(getattr(part, "pipeline", part)).__name__ for part in loader.transform)
    figure.suptitle(f"Epoch {loader.epoch}, as stored and as the model sees it: {steps}", fontsize=11)
    for place, (position, image) in enumerate(zip(loader.order().tolist(), seen, strict=False)):
        row, column = divmod(place, columns)
        _show(axes[2 * row][column], loader.images[position].cpu() / 255)
        _show(axes[2 * row + 1][column], denormalize(image, normalization.mean, normalization.std))
        axes[2 * row][column].set_title(f"#{position}", fontsize=8)
    _hide([axis for pair in (axes[-2:],) for row in pair for axis in row[(len(seen) - 1) % columns + 1 :]])
    return figure


def _check_figure_arguments(records: Any, data: Any) -> None:
    if not isinstance(records, Sequence):
        raise TypeError(f"records are those of predictions.wrong(20) or .correct(20), not {type(records).__name__}")
    missing = [name for name in ("classes", "mean", "std") if not hasattr(data, name)]
    if missing:
        raise TypeError(
            f"data is what load_data returned, or any object with classes, mean and std; {type(data).__name__} has no "
            f"{missing[0]}"
        )
    highest = max((max(record.predicted, record.target) for record in records), default=0)
    if highest >= len(data.classes):
        raise ValueError(
            f"a record names class {highest} and the data has {len(data.classes)} classes; pass the data it is of, and "
            "build and train the model with num_classes=len(data.classes)"
        )
    pixels = [value for record in records for value in unclamped_pixels(record.image, data.mean, data.std).aminmax()]
    if pixels and (min(pixels) < -0.05 or max(pixels) > 1.05):
        warnings.warn(
            f"by this data's mean and std pixels run from {min(pixels):.2f} to {max(pixels):.2f} and not from 0 "
            "to 1, so colours and class names may be wrong; pass the data that the predictions are of",
            stacklevel=3,
        )


def _warn_of_another_answer(probabilities: Tensor, records: Sequence[Any], classes: Sequence[str]) -> None:
    """Warn if the captions would say one thing and the model whose maps stand beside them another."""
    held = torch.tensor([record.confidence for record in records])
    now = probabilities[range(len(records)), [record.predicted for record in records]]
    place = int((now - held).abs().argmax())
    if abs(now[place] - held[place]) > 0.05:  # half precision differs by less
        record = records[place]
        warnings.warn(
            f"the model no longer says what the records hold: of image #{record.index} {classes[record.predicted]!r} "
            f"with {100 * now[place]:.0f}% and not {100 * held[place]:.0f}%; predict anew if it is another model, or "
            "was trained or loaded since",
            stacklevel=3,
        )


def _heading(records: Sequence[Any]) -> str:
    """Say what is shown, and whether it is less than was asked for."""
    kind, asked = getattr(records, "kind", ""), getattr(records, "asked", len(records))
    if not records:
        return f"No {kind} images: there are none to show".replace("  ", " ")
    shown = plural(len(records), f"{kind} image".strip())
    return shown if len(records) >= asked else f"{shown}, all there are of the {asked} asked for"


def _caption(record: Any, data: Any) -> str:
    predicted, actual = (shorten(data.classes[number], 11) for number in (record.predicted, record.target))
    lines = [f"#{record.index}", f"predicted: {predicted}", f"confidence {100 * record.confidence:.0f}%"]
    return "\n".join(lines if record.predicted == record.target else [*lines, f"actual: {actual}"])


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(shorten(name), 13))


def _show(axis: "Axes", image: Tensor) -> None:
    """Draw an image (3, H, W), or a grey one (1, H, W), in [0, 1], each pixel a crisp square."""
    axis.imshow(_in_colour(image).permute(1, 2, 0).numpy(), interpolation="nearest")
    _frame(axis)


def _in_colour(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)  # of one channel three equal ones


def _show_overlay(axis: "Axes", image: Tensor, map_: Tensor) -> None:
    _show(axis, overlay(_in_colour(image), map_))
    if not map_.any():
        axis.set_xlabel(f"{axis.get_xlabel()}\nnothing stands out".strip(), fontsize=7)


def _frame(axis: "Axes") -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _hide(axes: Sequence["Axes"]) -> None:
    for axis in axes:
        axis.set_visible(False)
