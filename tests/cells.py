"""Cells of notebooks and of pages, run in this process."""

import ast
import re
import subprocess
from pathlib import Path

# A notebook outside Colab has nobody to answer git, which would wait for the name of an account.
CLONE = "![ -d eva_utils ] || GIT_TERMINAL_PROMPT=0 git clone --quiet https://github.com/"


def python_of(cell):
    """The Python of a cell: without the lines that are IPython's, nothing of a cell that is written to a file."""
    return "" if cell.startswith("%%") else re.sub(r"^[!%].*$", "", cell, flags=re.MULTILINE)


def made_smaller(cell, smaller):
    """Return a cell with what is real in it replaced by what is small."""
    for real, small in smaller.items():
        cell = cell.replace(real, small)
    return cell


def run(cell, names):
    """Run a cell: a file that it writes, its copies, its Python; return the value of its last line, if it has one."""
    if cell.startswith("%%writefile "):
        path, content = cell.removeprefix("%%writefile ").split("\n", 1)
        Path(path).write_text(content)
    for line in re.findall(r"^!(.*)", cell, re.MULTILINE):
        if line.startswith("zip "):
            assert all(Path(path).exists() for path in line.split()[3:])
            Path(line.split()[2]).touch()
        else:
            copies = line.startswith(("cp ", "mkdir -p "))
            assert copies or f"!{line}".startswith(CLONE)
            subprocess.run(line if copies else "true", shell=True, check=True)
    body = ast.parse(python_of(cell)).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else ast.parse("None").body[0]
    exec(compile(ast.Module(body, []), cell, "exec"), names)
    return eval(compile(ast.Expression(last.value), cell, "eval"), names)
