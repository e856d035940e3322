"""The rule of a plain notebook: what a cell defines, among the magics of IPython."""

import json
import sys

import pytest
from audited import only, record, small

from eva_utils.utils.assignments import Brief
from eva_utils.utils.brief import audit
from eva_utils.utils.data import load_data
from eva_utils.utils.notebook import definitions

MOVE = "; move that to a .py file, import it, restart and run all cells"


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


def notebook(tmp_path, *cells):
    kinds = [{"cell_type": "markdown", "source": ["def in_text(): pass"]}]
    kinds += [{"cell_type": "code", "source": [line + "\n" for line in cell.splitlines()]} for cell in cells]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": kinds}))
    return tmp_path / "a.ipynb"


def plain(data, path):
    rules = Brief("title", "objective", plain_notebook=True)
    return only(audit(rules, record(data, small()), small(), data, notebook=path))


def test_a_plain_notebook_passes(data, tmp_path):
    cells = ["!git clone x\n%pip install y\nimport torch", "files = !ls", "print?", "%%bash\ncd x && ls", "!a \\\n b"]
    finding = plain(data, notebook(tmp_path, *cells))
    assert (finding.verdict, finding.found) == ("pass", "a.ipynb: 5 code cells, none defines any")


def test_definitions_in_a_notebook_are_named(data, tmp_path):
    cells = ["if True:\n    def sneaky(): pass", "class Net: pass", "%%capture\ndef quiet(): pass", "f = lambda x: x"]
    finding = plain(data, notebook(tmp_path, *cells))
    assert (finding.verdict, finding.found) == ("FAIL", f"a.ipynb: defines sneaky, Net, quiet, lambda{MOVE}")


CELLS = {
    "\n%%time\nclass Net: pass": ["Net"],
    "%%time\n \n%%capture out\ndef f(): pass": ["f"],
    "%%timeit -n 3 f = lambda: 1\nf()": ["lambda"],
    "%time f = lambda: 1": ["lambda"],
    "if True:\n    took = %timeit -o -r 3 (lambda: 1)()": ["lambda"],
    "%prun -s cumulative -l 10 f = lambda: 1": ["lambda"],
    "%prun -s name train()": [],
    "out = !ls \\\n -l\ndef f(): return 1": ["f"],
    "for x in y:\n    !ls\neva.fit??\ndef f(): pass": ["f"],
    "f = lambda: 1  # why?": ["lambda"],
    "x = (17\n% 5)\ndef f(): pass": ["f"],
    "%%python\nclass Net: pass": ["Net"],
    "%%writefile net.py\nclass Net: pass": [],
    "%%time\n%%HTML\n<b>def</b>": [],
    "%%script bash\nif": [],
    "%time history = fit(model,\n  data)": [],
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("installed", [True, False])
def test_definitions_are_found_among_magics_with_and_without_ipython(cell, installed, monkeypatch):
    if installed:
        pytest.importorskip("IPython")
    else:
        monkeypatch.setitem(sys.modules, "IPython.core.inputtransformer2", None)
    assert definitions(cell) == CELLS[cell]


@pytest.mark.parametrize("installed", [True, False])
def test_a_cell_that_cannot_be_read_is_not_clean(data, tmp_path, installed, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "IPython.core.inputtransformer2", None)
    finding = plain(data, notebook(tmp_path, "import torch", "pip install y" + 99 * "-" + "\nx = 1"))
    assert finding.verdict == "not checked"
    assert finding.found == "a.ipynb: code cell 2 is no Python; it begins 'pip install y---------------------------'"
    finding = plain(data, notebook(tmp_path, "pip install y", "def f(): pass"))
    assert (finding.verdict, finding.found) == ("FAIL", f"a.ipynb: defines f{MOVE}")


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [{}]}'])
def test_a_broken_notebook_is_named(data, tmp_path, content):
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"a\.ipynb cannot be read as a notebook"):
        plain(data, tmp_path / "a.ipynb")
