"""Plain values as Markdown that shows them as they are."""

import re
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Return text that Markdown and HTML show as it is: what they could read as markup becomes an entity."""
    plain = re.sub(r"\s+", " ", str(text)).strip()
    markup = r"[^\w\s,.:;()%/=+±→'-]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//)"
    plain = re.sub(markup, lambda match: f"&#{ord(match[0])};", plain)
    # What begins a list or underlines a heading.
    return re.sub(r"^(\d*)([-+.)](?=\s|$)|[-=](?=[-=\s]*$))", lambda match: f"{match[1]}&#{ord(match[2])};", plain)


def fence(text: str) -> str:
    """Return text as a code block that no run of backticks in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *[[escape(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
