"""What all figures share: colours, size, style, and how one becomes a file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (2008), told apart by every kind of colour vision, without their black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, ORANGE, *_ = COLOURS
GREY = "#808080"
WIDTH = 10.0  # inches: the width of a README at 100 dots an inch


def new_figure(rows: int, columns: int, height: float, width: float = WIDTH) -> tuple["Figure", list[list["Axes"]]]:
    """Return a figure and its axes by row; closed for pyplot, which would show it a second time."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    plt.close(figure)
    return figure, [list(row) for row in axes]


@contextmanager
def default_style() -> Iterator[None]:
    """Draw on white in matplotlib's own style, whatever style is in force."""
    import matplotlib.style

    with matplotlib.style.context("default"):
        yield


def png_bytes(figure: "Figure") -> bytes:
    """Return a figure as the content of a PNG file at 100 dots an inch; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    return content.getvalue()


def tidy(axis: "Axes") -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def shorten(name: object, width: int = 22) -> str:
    """Return a name as text of at most so many characters, in which matplotlib sees no formula."""
    text = str(name)
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.replace("$", r"\$")
