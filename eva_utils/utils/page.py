"""The README of a run, text and figures, from its record alone."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import figures, plotting, sections
from .history import History
from .hyperparameters import hyperparameters
from .markdown import escape
from .predictions import HITS, MISTAKES, Record, Records
from .seal import is_sealed, seal_png, seal_text
from .verified import write_atomic

FIGURES = ("curves", "confusion", "correct", "correct_gradcam", "misclassified", "misclassified_gradcam")


def check_own(folder: Path) -> None:
    """Refuse to write over a README.md or a figure that was not written here, or was edited since.

    Raises:
        ValueError: there is such a file.
    """
    if (folder / "figures").exists() and not (folder / "figures").is_dir():
        raise ValueError(f"{folder / 'figures'} is a file, where the report's figures go; rename it")
    for path in (folder / "README.md", *(folder / "figures" / f"{name}.png" for name in FIGURES)):
        if path.exists() and not is_sealed(path):
            raise ValueError(f"{path} was edited or written by hand; rename it, and the report is written beside it")


def render(record: dict) -> dict[str, bytes]:
    """Return the files of a report, by their path in its folder: the same record gives the same bytes."""
    with figures.default_style():
        drawn = _figures(record)
        pages = {f"figures/{name}.png": seal_png(figures.png_bytes(figure)) for name, figure in drawn.items()}
    return pages | {"README.md": readme(record)}


def checksums(pages: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each figure by its name, to be kept in the record it was drawn of."""
    drawn = {path: content for path, content in pages.items() if path.endswith(".png")}
    return {Path(path).stem: hashlib.sha256(content).hexdigest() for path, content in drawn.items()}


def write_page(folder: Path, pages: dict[str, bytes]) -> Path:
    """Write what `render` returned, the README last, and return its path; figures of an earlier report go."""
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    for old in (*pictures.glob(".*.tmp"), *(pictures / f"{name}.png" for name in FIGURES)):
        if f"figures/{old.name}" not in pages:
            old.unlink(missing_ok=True)
    for name, content in pages.items():
        write_atomic(folder / name, content)
    return folder / "README.md"


def _figures(record: dict) -> dict[str, Any]:
    data = SimpleNamespace(**record["data"])
    drawn = {
        "curves": plotting.plot_history(History(record["rows"]), record["results"]["split"]),
        "confusion": plotting.plot_confusion(sections.predictions_of(record), data),
    }
    for name, kind in (("correct", HITS), ("misclassified", MISTAKES)):
        gallery = record["galleries"][kind]
        if gallery["records"]:
            said = [Record(**fields) for fields in gallery["records"]]
            records = Records(said, kind, gallery["asked"], gallery["total"])
            drawn[name] = plotting.plot_images(records, data)
            if gallery["maps"]:
                maps = gallery["maps"], gallery["true_maps"], record["maps"]
                drawn[f"{name}_gradcam"] = plotting.draw_gradcam(records, data, *maps)
    return drawn


def readme(record: dict) -> bytes:
    """Return the README alone."""
    texts = {
        "Objective": escape(record["objective"]),
        "Parameters and hyperparameters": hyperparameters(record),
        "Model summary": sections.summary(record),
        "Results": sections.results(record),
        "Training log": sections.log(record),
        "Curves": sections.curves(record),
        "Correctly classified images": sections.gallery(record, HITS, "correct"),
        "Grad-CAM of the correctly classified images": sections.gradcam(record, HITS, "correct"),
        "Misclassified images": sections.gallery(record, MISTAKES, "misclassified"),
        "Grad-CAM of the misclassified images": sections.gradcam(record, MISTAKES, "misclassified"),
        "Confusion matrix": sections.confusion(record),
        "Remarks": sections.remarks(record.get("remarks") or ""),
        "Audit": sections.audit(record["audit"]),
        "How this was made": sections.made(record),
    }
    kept = {title: text for title, text in texts.items() if text}
    contents = "\n".join(f"- [{title}](#{title.lower().replace(' ', '-')})" for title in kept)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in kept.items())
    author = f"by {escape(record['author'])}\n\n" if record.get("author") else ""
    return seal_text(f"# {escape(record['title'])}\n\n{author}## Contents\n\n{contents}\n\n{body}\n\n")
