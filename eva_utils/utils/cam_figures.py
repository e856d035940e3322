"""Figures of Grad-CAM: maps at several layers, or a gallery at one."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .figures import WIDTH, fit, new_figure, wrap
from .gradcam import GradCAM, overlay
from .panels import check_records, frame, heading, hide, in_colour, show_image
from .transforms import denormalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 0.25  # between two images' groups of a gallery, in widths of an image


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
        ValueError: those of `GradCAM`, or a record is of a class that the data does not have.
        TypeError: the arguments are something else.
    """
    check_records(records, data)
    cam = GradCAM(model, layers, reshape=reshape)
    if not records:
        return draw_gradcam(records, data, {})
    images = torch.stack([record.image for record in records])
    maps, sizes, probabilities = cam.explain(images, [record.predicted for record in records])
    _warn_of_another_answer(probabilities, records, data.classes)
    true_maps = {}
    if len(maps) == 1:  # whose layer is known by now
        true_maps = GradCAM(model, list(maps), reshape=reshape)(images, [record.target for record in records])
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
        figure.suptitle(wrap(heading(records, data.classes), 64 * WIDTH, 12), fontsize=12)
        hide(axes[0])
        return figure
    sides = {layer: f"{height}x{width}" for layer, (height, width) in (sizes or {}).items()}
    if len(maps) > 1:
        return _layer_rows(records, data, maps, sides)
    ((layer, predicted),) = maps.items()
    shown = f"{layer}, {sides[layer]}" if layer in sides else layer
    return _pair_gallery(records, data, shown, predicted, (true_maps or maps)[layer])


def _layer_rows(records: Sequence[Any], data: Any, maps: Mapping[str, Tensor], sides: Mapping[str, str]) -> "Figure":
    columns = 1 + 2 * len(maps)
    cell = max(WIDTH / (columns + 1.25), 1.1)  # inches, which the names above it need; the captions take 1.25
    blank = any(not bool(layer_maps[number].any()) for layer_maps in maps.values() for number in range(len(records)))
    title = _title(records, data, "Grad-CAM for the predicted class")
    headings = -(-len(records) // 5)
    height = 0.6 + 0.2 * (title.count("\n") + headings) + (cell + 0.15 * blank) * len(records)
    figure, axes = new_figure(len(records), columns, height, cell * (columns + 1.25))
    figure.suptitle(title, fontsize=12)
    for number, (row, record) in enumerate(zip(axes, records, strict=True)):
        image = denormalize(record.image, data.mean, data.std)
        show_image(row[0], image)
        row[0].set_ylabel(_caption(record, data, 80 * cell), fontsize=7, rotation=0, ha="left", va="center")
        row[0].yaxis.set_label_coords(-1.25, 0.5)
        for place, (layer, layer_maps) in enumerate(maps.items()):
            over, heat = row[1 + 2 * place], row[2 + 2 * place]
            _show_overlay(over, image, layer_maps[number])
            map_ = layer_maps[number].numpy()
            heat.imshow(map_, cmap="viridis", vmin=0, vmax=1, interpolation="nearest", origin="upper")
            frame(heat)
            if number % 5 == 0:
                over.set_title(fit(layer, 64 * cell, 9, end=0.5), fontsize=9)
                heat.set_title(f"map {sides.get(layer, '')}".strip(), fontsize=9)
    return figure


def _pair_gallery(records: Sequence[Any], data: Any, layer: str, predicted: Tensor, true: Tensor) -> "Figure":
    any_wrong = any(record.predicted != record.target for record in records)
    cells, most = (3, 3) if any_wrong else (2, 4)
    groups = min(most, len(records))
    rows = -(-len(records) // groups)
    ratios = [*([1.0] * cells + [GAP]) * groups][:-1]  # a gap after each image's group
    width = WIDTH * max(groups / most, 2 / 3)  # for the title
    cell = width / sum(ratios)
    points = 64 * cell
    names = [
        [wrap(data.classes[number], points, 8) for number in (record.predicted, record.target)] for record in records
    ]
    lines = 3.5 + max(name.count("\n") for pair in names for name in pair) + (not (predicted.any() and true.any()))
    title = _title(records, data, f"Grad-CAM at {layer}", width)
    height = 0.6 + 0.2 * title.count("\n") + (cell + 0.14 * lines) * rows
    figure, axes = new_figure(rows, len(ratios), height, width, ratios=ratios)
    hide([axis for cells_of_row in axes for axis in cells_of_row[cells :: cells + 1]])
    figure.suptitle(title, fontsize=12)
    for number, record in enumerate(records):
        row, column = divmod(number, groups)
        group = axes[row][(cells + 1) * column :][:cells]
        image = denormalize(record.image, data.mean, data.std)
        show_image(group[0], image)
        group[0].set_xlabel(f"#{record.index}", fontsize=8)
        group[1].set_title(f"predicted:\n{names[number][0]}", fontsize=8)
        group[1].set_xlabel(f"confidence {100 * record.confidence:.0f}%", fontsize=8)
        _show_overlay(group[1], image, predicted[number])
        if any_wrong:
            _show_overlay(group[2], image, true[number])
            group[2].set_title(f"actual:\n{names[number][1]}", fontsize=8)
    hide(axes[-1][(cells + 1) * (len(records) - groups * (rows - 1)) :])
    return figure


def _title(records: Sequence[Any], data: Any, shown: str, width: float = WIDTH) -> str:
    """Return which images there are, what is shown of them, and how to read its colours."""
    lines = heading(records, data.classes), f"{shown}; dark violet: nothing, yellow: most"
    return "\n".join(wrap(line, 64 * width, 12) for line in lines)


def _show_overlay(axis: "Axes", image: Tensor, map_: Tensor) -> None:
    show_image(axis, overlay(in_colour(image), map_))
    if not map_.any():
        axis.set_xlabel(f"{axis.get_xlabel()}\nnothing stands out".strip(), fontsize=7)


def _caption(record: Any, data: Any, points: float) -> str:
    confidence = f"confidence {100 * record.confidence:.0f}%"
    lines = [f"#{record.index}", f"predicted: {data.classes[record.predicted]}", confidence]
    if record.predicted != record.target:
        lines.append(f"actual: {data.classes[record.target]}")
    return "\n".join(wrap(line, points, 7) for line in lines)


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
