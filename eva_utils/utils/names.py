"""Parts of messages: the answer to a misspelt name, and what an error says first."""

import difflib
import re
from collections.abc import Iterable


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Return the error to raise for a name that is not known: it lists the known ones (of many the first ten)
    and suggests the nearest.

    Args:
        kind: what the name should have named, as "model".
        name: what was received.
        known: the names there are.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=len(known) or 1)
    near.sort(key=lambda other: "." in other and "." not in str(name))  # by layer4 layer3 is meant, not layer3.4
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known) if len(known) <= 12 else ", ".join([*known[:10], "…"])
    return ValueError(f"unknown {kind} {name!r}: choose one of {listed}{hint}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none; of an error in a worker of a loader,
    whose message torch makes a traceback, that of the error itself.
    """
    message = str(error)
    if re.match(r"Caught \w+ in DataLoader worker", message):
        *_, last = re.split(r"\n(?:  .*\n)+", message)  # what follows the last lines of code
        message = re.sub(r"^[\w.]+: ", "", last)
    return next(iter(message.strip().splitlines()), type(error).__name__)


def enumerated(names: Iterable[object]) -> str:
    """Return names one after the other, between commas, or semicolons where a name has a comma in it."""
    texts = list(map(str, names))
    return ("; " if any("," in text for text in texts) else ", ").join(texts)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as "1 epoch" or "2 epochs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
