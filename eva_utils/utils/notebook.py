"""The code of a notebook, and what it defines."""

import ast
import json
import re
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

_NO_PYTHON = {
    "!", "bash", "bigquery", "cmd", "file", "html", "javascript", "js", "latex", "markdown", "perl", "r", "ruby",
    "script", "sh", "shell", "sql", "svg", "sx", "system", "writefile",
}  # fmt: skip
_TIMED = re.compile(
    r"^([ \t]*)(?:[\w., \t]+=[ \t]*)?%(?:time|timeit|prun)\b(?:[ \t]+-(?:[slTD][ \t]+\S+|[\w-]+(?:[ \t]+\d+)?))*[ \t]*",
    re.MULTILINE,
)
# %magic, !shell and ?help, each with the lines that a \ joins to it, or the value of one (files = !ls); help?
_ONLY_IPYTHON = re.compile(
    r"^([ \t]*)(?:(?:(?:[\w., \t]+=[ \t]*)?[!%]|\?)(?:.*\\\n)*.*|[\w.*%]+\?{1,2}[ \t]*)$", re.MULTILINE
)


def cells_run_here() -> list[str] | None:
    """Return the code cells that have run in this notebook, as they were typed, or None outside one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return None
    return [cell for cell in shell.history_manager.input_hist_raw if cell.strip()]


def cells_of(path: str | Path) -> list[str]:
    """Return the code cells of a notebook file.

    Raises:
        ValueError: the file is not a notebook.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook ({type(error).__name__}: {error})") from None


def definitions(cell: str) -> list[str]:
    """Return the names of the functions and classes that a cell defines; of a lambda "lambda".

    A cell that is written to a file or is of another language defines nothing.

    Raises:
        SyntaxError: the cell is no Python.
    """
    above, code = "", cell
    while magic := re.match(r"\s*%%(\S+)(.*)\n?", code):  # %%time, %%capture and the like run the Python below them
        if magic[1].lower() in _NO_PYTHON:
            return []
        above += f"%{magic[1]}{magic[2]}\n"
        code = code[magic.end() :]
    tree = _parse(_TIMED.sub(r"\1", above + textwrap.dedent(code)))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name if isinstance(node, named) else "lambda"
        for node in ast.walk(tree)
        if isinstance(node, (*named, ast.Lambda))
    ]


def _parse(code: str) -> ast.Module:
    """Parse Python among IPython's own lines (!ls, %cd, name?), IPython's way where it is installed."""
    try:
        from IPython.core.inputtransformer2 import TransformerManager
    except ImportError:
        with suppress(SyntaxError):
            return ast.parse(code)  # where a line that begins in % is the rest of a calculation
        return ast.parse(_ONLY_IPYTHON.sub(r"\1pass", code))
    return ast.parse(TransformerManager().transform_cell(code + "\n"))
