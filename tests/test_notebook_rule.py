"""The rule of a plain notebook: what a cell defines, among the magics of IPython."""

import json
import sys
from types import SimpleNamespace

import pytest

from audited import only, record, small
from eva_utils.utils.assignments import Brief
from eva_utils.utils.brief import audit, audit_plan
from eva_utils.utils.data import load_data
from eva_utils.utils.notebook import cells_run_here, definitions

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


@pytest.fixture
def typed(monkeypatch):
    """A notebook in which these cells have run, the first of them empty as IPython's history has it."""

    def run(*cells):
        history = SimpleNamespace(input_hist_raw=["", *cells])
        shell = SimpleNamespace(history_manager=history)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        monkeypatch.setitem(sys.modules, "IPython.core.inputtransformer2", None)

    return run


def test_the_cells_that_have_run_here_are_those_of_the_notebook_around(typed, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert cells_run_here() is None  # IPython is imported, and runs nothing
    monkeypatch.delitem(sys.modules, "IPython")
    assert cells_run_here() is None
    typed("x = 1", " \n", "def f(): pass")
    assert cells_run_here() == ["x = 1", "def f(): pass"]


def test_a_run_in_a_notebook_is_judged_by_what_has_run_in_it(data, typed):
    typed("import torch", "x = 1")
    finding = plain(data, None)
    assert (finding.verdict, finding.found) == ("pass", "this notebook since its start: 2 code cells, none defines any")
    typed("x = 1", "class Net: pass")
    finding = plain(data, None)
    assert (finding.verdict, finding.found) == ("FAIL", f"this notebook since its start: defines Net{MOVE}")


def test_a_plan_is_judged_by_the_notebook_it_is_made_in_alone(data, typed):
    model, rules = small(), Brief("title", "objective", plain_notebook=True)
    model(next(iter(data.test))[0])
    assert audit_plan(rules, model, data).findings == []
    typed("class Net: pass")
    finding = only(audit_plan(rules, model, data))
    assert (finding.rule, finding.verdict) == ("notebook", "FAIL")
    assert finding.found == f"this notebook since its start: defines Net{MOVE}"
