"""The code of a notebook, and what it defines."""

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path


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

    What is no Python (a cell of another language, or one that cannot have run) defines nothing.
    """
    lines = cell.splitlines()
    if lines and lines[0].startswith("%%"):  # %%time, %%capture and the like run the Python below them
        lines = lines[1:]
    try:
        tree = ast.parse(_plain_python()("\n".join(lines) + "\n"))
    except SyntaxError:
        return []
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name if isinstance(node, named) else "lambda"
        for node in ast.walk(tree)
        if isinstance(node, (*named, ast.Lambda))
    ]


def _plain_python() -> Callable[[str], str]:
    """Return what turns IPython's own syntax (!ls, %cd, name?) into Python: IPython's way, where it is installed."""
    try:
        from IPython.core.inputtransformer2 import TransformerManager
    except ImportError:
        return lambda code: "".join(line for line in code.splitlines(True) if not line.lstrip().startswith(("!", "%")))
    return TransformerManager().transform_cell
