"""The command line, run in this process, which has torch imported."""

import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from conftest import ROOT


def parse(arguments):
    """Return the options that main.py makes of these texts."""
    return runpy.run_path(str(ROOT / "main.py"))["parse"](arguments)


def run(*arguments, code=0):
    """Return what main.py prints, with another status than 0 what it complains of."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
    assert end.value.code == code, out.getvalue() + err.getvalue()
    assert "Traceback" not in err.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()
