"""The note that the command line leaves beside a run: the commands that made it, their options, and its data."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import processes
from .checkpoint import holds_run
from .verified import write_atomic

NAME = "command.json"
_KEYS = ("commands", "options", "classes", "mean", "std")


def begin_note(run: Path, options: Mapping[str, Any], data: Any) -> None:
    """Note this command, its options and the data beside a new run; a run that has begun keeps its note."""
    if not holds_run(run):
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        said = {"classes": data.classes, "mean": data.mean, "std": data.std}
        _write(run, {"commands": [this_command()], "options": plain, **said})


def add_command(run: Path, program: str = "main.py") -> None:
    """Add this command, of this program, to those that made the run, if it has a note and not this command."""
    note, command = read_note(run), this_command(program)
    if note and command not in note["commands"]:
        _write(run, note | {"commands": [*note["commands"], command]})


def read_note(run: Path) -> dict[str, Any] | None:
    """Return the note beside a run that has begun, or None where there is none.

    Raises:
        ValueError: it is not as it was written.
    """
    path = run / NAME
    if not holds_run(run) or not path.exists():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        for part, key in (*((note, key) for key in _KEYS), (note["options"], "epochs")):
            if key not in part:
                raise KeyError(key)
        return note
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what main.py wrote ({error!r}); restore or remove it") from None


def commands_of(run: Path) -> str | None:
    """Return the lines of the shell that made the run, or None where no note says them."""
    try:
        note = read_note(run)
        return "\n".join(note["commands"]) if note else None
    except (OSError, ValueError, TypeError):
        return None


def this_command(program: str = "main.py") -> str:
    """Return the line of the shell that started this program."""
    several = processes.count() > 1
    start = ["torchrun", f"--nproc-per-node={processes.count()}"] if several else ["python"]
    return shlex.join([*start, program, *sys.argv[1:]])


def _write(run: Path, note: Mapping[str, Any]) -> None:
    write_atomic(run / NAME, (json.dumps(note, indent=1) + "\n").encode())
