"""A report that was handed in: what it says, whether its page matches its record, and whether it was edited."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import page
from .history import History
from .report import RECORD
from .rules import FAIL, PASS, UNCHECKED
from .seal import is_sealed
from .verified import load_verified


@dataclass(frozen=True)
class HandedIn:
    """A handed-in report in figures; prints as one line.

    Attributes:
        folder: where it is.
        title, author: as the page has them; the author may be None.
        accuracy, epoch: the record's best epoch, in percent.
        verdicts: of the audit, how many are "pass", "FAIL" and "not checked".
        run: the first digits of a checksum of the predictions; two reports that share them are of one run, or of the
            same code and seed on the same kind of machine.
        problems: what is missing, edited or not the record's.
    """

    folder: Path
    title: str
    author: str | None
    accuracy: float
    epoch: int
    verdicts: Counter[str]
    run: str
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        counted = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in (PASS, FAIL, UNCHECKED))
        audit = counted if self.verdicts.total() else "no brief"
        found = "; ".join(self.problems) or "the page is the record's, the figures are unedited"
        author, title = (" ".join(text.split()) for text in (self.author or "no author", self.title))  # in one line
        return (
            f"{self.folder}: {author}, {title}: {self.accuracy:.2f}% at epoch {self.epoch}; "
            f"audit: {audit}; run {self.run}; {found}"
        )


def check_report(folder: str | Path) -> HandedIn:
    """Read a report that was handed in from its `report.pt`, and see whether the rest of it is what that says.

    It finds accidents and careless edits. It is no proof: whoever wants to can make a record of their own.

    Args:
        folder: with README.md, figures/ and report.pt, and history.json if that was asked for.

    Raises:
        FileNotFoundError: the folder holds no report.pt.
        NotADirectoryError: it is a file.
        DamagedFileError: it was truncated or changed.
        ValueError: it is another file under that name.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give the folder of the report")
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder} holds no {RECORD}, which write_report leaves beside the README; ask for it")
    record = load_verified(folder / RECORD)
    if not isinstance(record, dict) or "results" not in record:
        raise ValueError(f"{folder / RECORD} is no report's record; ask for the one that write_report left")
    best = record["results"]["best"]
    answers = hashlib.sha256(record["predictions"]["probabilities"].numpy().tobytes()).hexdigest()
    return HandedIn(
        folder=folder,
        title=record["title"],
        author=record.get("author"),
        accuracy=best["accuracy"],
        epoch=best["epoch"],
        verdicts=Counter(finding["verdict"] for finding in record["audit"]),
        run=answers[:8],
        problems=tuple(_problems(folder, record)),
    )


def _problems(folder: Path, record: dict) -> list[str]:
    found, text = [], page.readme(record)
    drawn = [name for name in page.FIGURES if f"(figures/{name}.png)".encode() in text]
    checksums = record.get("figures", {})  # which the first reports do not have
    readme, history = folder / "README.md", folder / "history.json"
    if not readme.is_file():
        found.append("README.md is missing")
    elif readme.read_bytes().replace(b"\r\n", b"\n") != text:
        found.append("README.md is of another record or version" if is_sealed(readme) else "README.md was edited")
    for name in drawn:
        figure = folder / "figures" / f"{name}.png"
        if not figure.is_file():
            found.append(f"{figure.name} is missing")
        elif not is_sealed(figure):
            found.append(f"{figure.name} was not drawn here, or was edited")
        elif name in checksums and hashlib.sha256(figure.read_bytes()).hexdigest() != checksums[name]:
            found.append(f"{figure.name} is another report's")
    if history.is_file():
        try:
            same = History.from_json(history.read_text(encoding="utf-8")).rows == record["rows"]
        except ValueError:
            same = False
        if not same:
            found.append("history.json is not the record's")
    return found
