"""What all figures share: colours, size, style, and how one becomes a file."""

import io
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (2008), told apart by every kind of colour vision, without their black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, ORANGE, *_ = COLOURS
GREY = "#808080"
WIDTH = 10.0  # inches: the width of a README at 100 dots an inch


def new_figure(
    rows: int, columns: int, height: float, width: float = WIDTH, ratios: Sequence[float] | None = None
) -> tuple["Figure", list[list["Axes"]]]:
    """Return a figure and its axes by row; pyplot does not know it, which would open a window or show it again."""
    from matplotlib.figure import Figure

    _tell_notebook()
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, [list(row) for row in axes]


def _tell_notebook() -> None:
    """Tell a notebook how to show figures, which otherwise are `<Figure size ...>`."""
    import matplotlib.pyplot  # noqa: F401 - it does so from IPython 8.24 on

    if "ipykernel" in sys.modules:
        with suppress(ImportError):
            import matplotlib_inline.backend_inline  # noqa: F401 - and this before


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


class _NameWrapper(textwrap.TextWrapper):
    """A wrapper of lines that also breaks after an underscore, as class names of folders have."""

    wordsep_re = re.compile(r"(\s+)|(?<=[-_])(?=\S)")


def shorten(name: object, width: int = 22, end: float = 0.0) -> str:
    """Return a name as text of at most so many characters, in which matplotlib sees no formula; see `cut`."""
    return _escape(cut(str(name), width, end))


def fit(name: object, points: float, fontsize: float, end: float = 0.0) -> str:
    """Return a name as one line of at most so many points; of what is kept the share `end` is the name's end."""
    text = str(name)[: int(points)]
    width_of = _ruler(text, fontsize)
    cuts = (cut(text, width, end) for width in range(len(text), 1, -1))
    return _escape(next((line for line in cuts if width_of(line) <= points), cut(text, 1)))


def wrap(name: object, points: float, fontsize: float) -> str:
    """Return a name in at most two lines of at most so many points."""
    text = str(name)[: 2 * int(points)]
    width_of = _ruler(text, fontsize)
    wrapped = (_NameWrapper(width).wrap(text) for width in range(len(text), 0, -1))
    rows = next((rows for rows in wrapped if max(map(width_of, rows), default=0) <= points), [])
    if len(rows) > 2:
        rows = [rows[0], re.sub("(?<=[-_]) ", "", " ".join(rows[1:]))]
    return "\n".join(fit(row, points, fontsize, end=0.5) for row in rows)


def _ruler(text: str, fontsize: float) -> Callable[[str], float]:
    """Return what measures in points, in the font in force, lines of the characters of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=fontsize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font has not: they are warned of when drawn
        width = {one: text_to_path.get_text_width_height_descent(one, font, ismath=False)[0] for one in {*text, *" …"}}
    return lambda line: sum(width[character] for character in line)


def cut(text: str, width: int, end: float = 0.0) -> str:
    """Return a text cut to so many characters; of what is kept the share `end` is the text's end."""
    kept = round(end * (width - 1))
    return text if len(text) <= width else f"{text[: width - 1 - kept]}…{text[len(text) - kept :]}"


def _escape(text: str) -> str:
    return text.replace("$", r"\$")
