"""What the figures of predicted images share: their check, their heading, and how an image is drawn."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .checks import check_data
from .figures import cut
from .names import plural
from .transforms import unclamped_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CRISP = 48  # the longest side of an image that is drawn pixel by pixel: half a cell of the smallest


def check_records(records: Any, data: Any) -> None:
    """Refuse what is no records or no data, and warn of data whose mean and std are of other images.

    Raises:
        TypeError: either is something else.
        ValueError: a record is of a class that the data does not have.
    """
    strays = (
        [records] if not isinstance(records, Sequence) else [said for said in records if not hasattr(said, "image")]
    )
    if strays:
        raise TypeError(f"records are those of predictions.wrong(20) or .correct(20), not {type(strays[0]).__name__}")
    check_data(data, "classes", "mean", "std", more=", or any object with classes, mean and std")
    numbers = [number for said in (records, *records) for number in _classes_of(said)]
    highest = max(numbers, default=0)
    if highest >= len(data.classes):
        raise ValueError(
            f"records name class {highest} and the data has {len(data.classes)} classes; pass the data they are of, "
            "and build and train the model with num_classes=len(data.classes)"
        )
    pixels = [value for record in records for value in unclamped_pixels(record.image, data.mean, data.std).aminmax()]
    if pixels and (min(pixels) < -0.05 or max(pixels) > 1.05):
        warnings.warn(
            f"by this data's mean and std pixels run from {min(pixels):.2f} to {max(pixels):.2f} and not from 0 "
            "to 1, so colours and class names may be wrong; pass the data that the predictions are of",
            stacklevel=3,
        )


def _classes_of(said: Any) -> list[int]:
    """Return the numbers of the classes that a record, or records chosen by class, are of."""
    numbers = [getattr(said, name, None) for name in ("target", "predicted")]
    return [number for number in numbers if number is not None]


def heading(records: Sequence[Any], classes: Sequence[Any]) -> str:
    """Say what is shown, of which classes if they were chosen, and whether it is less than was asked for."""
    kind, asked = getattr(records, "kind", ""), getattr(records, "asked", len(records))
    target, predicted = getattr(records, "target", None), getattr(records, "predicted", None)
    chosen = "" if target is None else f" of class {cut(str(classes[target]), 22)}"
    chosen += "" if predicted is None else f" taken for {cut(str(classes[predicted]), 22)}"
    if not records:
        return f"No {kind} images{chosen}: there are none to show".replace("  ", " ")
    shown = plural(len(records), f"{kind} image".strip()) + chosen
    return shown if len(records) >= asked else f"{shown}, all there are of the {asked} asked for"


def show_image(axis: "Axes", image: Tensor) -> None:
    """Draw an image (3, H, W), or a grey one (1, H, W), in [0, 1], each pixel a crisp square where there is room.

    Of an image with more pixels than its cell has, or nearly so, nearest ones would drop some and double others.
    """
    interpolation = "nearest" if max(image.shape[1:]) <= CRISP else "antialiased"
    axis.imshow(in_colour(image).permute(1, 2, 0).numpy(), interpolation=interpolation, origin="upper")
    frame(axis)


def in_colour(image: Tensor) -> Tensor:
    """Return the image with three channels, three equal ones of a single one."""
    return image.expand(3, -1, -1)


def frame(axis: "Axes") -> None:
    """Leave the picture alone: no ticks and no border, but room for a title and a caption."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def hide(axes: Sequence["Axes"]) -> None:
    """Leave the cells of the grid empty that have no image."""
    for axis in axes:
        axis.set_visible(False)
