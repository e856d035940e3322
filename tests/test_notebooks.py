"""The assignments' notebooks, executed headless in the folder above a bare clone."""

import ast
import json
import re
import warnings

import nbformat
import pytest
from conftest import ROOT

from assignment.run_notebook import as_shown, keep_outputs
from eva_utils.utils import page
from eva_utils.utils.assignments import BRIEFS
from eva_utils.utils.history import History
from eva_utils.utils.seal import is_sealed
from eva_utils.utils.verified import load_verified

# One cycle peaks after half of a short run, which may not be its first batch; the finder of eva6_s9 wants 16 batches.
SMALLER = {
    "eva6_s8": {"epochs": 3},
    "eva6_s9": {"epochs": 2, "batch_size": 2, "limit": 32},
    "eva8_s7": {"epochs": 3},
    "eva8_s10": {"epochs": 3},
}
KEPT = {
    "eva6_s8": ["normalization", "learning rate", "training transforms"],
    "eva6_s9": ["learning rate", "convolutions and linear layers", "training transforms"],
    "eva8_s7": ["notebook", "Grad-CAM maps", "training transforms"],
    "eva8_s10": ["normalization", "Grad-CAM maps", "misclassified images"],
}
CHOOSING_A_RATE = {
    f"eva.{name}"
    for name in ("param_groups", "lr_find", "plot_lr_find", "one_cycle", "plot_schedule", "learning_rates")
}
EXECUTED = ["eva6_s8", "eva6_s9", "eva8_s10", "eva8_s7"]
NOTEBOOKS = sorted((ROOT / "assignment").glob("*/*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_about_ten_calls_and_no_definition(path):
    code = ["".join(cell["source"]) for cell in cells(path)]
    python = "\n".join(line for cell in code for line in cell.splitlines() if not line.startswith(("!", "%")))
    tree = list(ast.walk(ast.parse(python)))
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in tree)
    calls = [ast.unparse(node.func) for node in tree if isinstance(node, ast.Call)]
    own = [name for name in calls if name.startswith("eva.")]
    assert 8 <= len(set(own) - CHOOSING_A_RATE) <= 12
    assert {"eva.fit", "eva.plot_gradcam", "eva.write_report"} < set(own)
    assert code[0].startswith("![ -d eva_utils ] || git clone --quiet https://github.com/")
    (parameters,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert f"epochs = {BRIEFS[path.stem].epochs}\n" in "".join(parameters["source"])
    badge = "".join(cells(path, "markdown")[0]["source"])
    assert f"assignment/{path.stem}/{path.name})" in badge and "colab-badge.svg" in badge


def test_every_brief_of_a_course_has_its_notebook():
    assert {path.stem for path in NOTEBOOKS} == set(BRIEFS) - {"speedrun"}


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_the_notebook_runs_and_leaves_its_report(name, clone, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill

    folder = tmp_path / "run"
    executed = papermill.execute_notebook(
        str(clone / "eva_utils" / "assignment" / name / f"{name}.ipynb"),
        None,
        parameters={"source": "shapes", "limit": 8, "epochs": 1, "run": str(folder), **SMALLER.get(name, {})},
        cwd=str(clone),
        kernel_name="python3",
        progress_bar=False,
    )
    epochs = SMALLER.get(name, {}).get("epochs", 1)
    shown = json.dumps(executed.cells[-1]["outputs"])
    assert "README.md is written" in shown and "FAIL         epochs" in shown
    log = json.dumps(executed)
    assert f"EPOCH: {epochs}" in log and " LR=0." in log and "100%|" in log
    text = (folder / "README.md").read_text(encoding="utf-8")
    required = {"epochs": BRIEFS[name].epochs, "classes": ", ".join(BRIEFS[name].classes)}
    assert f"| epochs | {required['epochs']} | {epochs} | **FAIL** |" in text
    assert f"| classes | {required['classes']} | circle" in text
    verdicts = {cell[0]: cell[-1] for cell in (line.strip("| ").split(" | ") for line in text.splitlines()) if cell}
    assert {verdicts[rule] for rule in KEPT[name]} == {"pass"}
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"curves", "confusion", "misclassified", "misclassified_gradcam"} <= figures


def notebook(*outputs, injected=False):
    code = [nbformat.v4.new_code_cell(source) for source in ("!install", "epochs = 2", "epochs + 1")]
    code[1].metadata.tags = ["parameters"]
    for cell, texts in zip(code, outputs, strict=False):
        cell.outputs = [nbformat.v4.new_output("stream", text=text) for text in texts]
    if injected:
        cell = nbformat.v4.new_code_cell("epochs = 1", metadata={"tags": ["injected-parameters"]}, outputs=[])
        code.insert(2, cell)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# title"), *code])


def test_outputs_go_to_the_cells_they_are_of():
    saved = notebook()
    for text in ("3\n", "2\n"):
        keep_outputs(saved, notebook(["machine\n"], [], ["loading\n", text], injected=True), f"of {text}")
    assert [cell.source for cell in saved.cells] == ["# title", "!install", "of 2\n", "epochs = 2", "epochs + 1"]
    shown = [[output.text for output in cell.outputs] for cell in saved.cells if cell.cell_type == "code"]
    assert shown == [[], [], ["loading\n2\n"]]
    nbformat.validate(saved)
    saved.cells[-1].source = "epochs + 2"
    with pytest.raises(ValueError, match=r"code cell 2 was edited since: 'epochs \+ 1' is now 'epochs \+ 2'"):
        keep_outputs(saved, notebook([], [], [], injected=True), "of 4")


def test_of_a_progress_bar_only_what_is_left_to_be_seen_is_kept():
    texts = ("EPOCH: 1\n", "\r 1/3", "\r 2/3", "\r 3/3", "\n", "Test set\n")
    stream = [nbformat.v4.new_output("stream", text=text) for text in texts]
    figure = nbformat.v4.new_output("display_data", {"text/plain": "Figure"})
    first, shown, last = as_shown([*stream, figure, stream[0]])
    assert (first.text, shown.data, last.text) == ("EPOCH: 1\n 3/3\nTest set\n", {"text/plain": "Figure"}, texts[0])
    assert stream[1].text == "\r 1/3"


@pytest.mark.parametrize("name", EXECUTED)
def test_saved_outputs_are_small_and_say_what_they_are_of(name):
    path = ROOT / "assignment" / name / f"{name}.ipynb"
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert path.stat().st_size < 4e6 and not any(output["output_type"] == "error" for output in outputs)
    assert any("JPEG-coded" in "".join(cell["source"]) for cell in cells(path, "markdown"))
    assert all(cell["outputs"] for cell in cells(path) if "eva.plot" in "".join(cell["source"]))
    log = "".join("".join(output.get("text", "")) for output in outputs)
    resumed = re.search(r"Resuming after epoch (\d+) of", log)  # the log begins there
    assert log.count("EPOCH: ") + int(resumed[1] if resumed else 0) == BRIEFS[name].epochs
    assert "\r" not in log and "/tmp/" not in log


REPORTED = [path.parent.name for path in sorted((ROOT / "assignment").glob("*/README.md"))]


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_that_stands_here_is_the_runs_own(name, monkeypatch):
    folder = ROOT / "assignment" / name
    history = History.from_json((folder / "history.json").read_text(encoding="utf-8"))
    record = load_verified(folder / "report.pt")
    assert record["rows"] == history.rows and record["settings"] == history.settings
    assert is_sealed(folder / "README.md") and all(is_sealed(path) for path in (folder / "figures").glob("*.png"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr("eva_utils.utils.page._figures", lambda record: {})  # which take seconds to draw
    assert page.render(record)["README.md"].decode("utf-8") == text
    assert f"| best epoch, {history.best['epoch']} | {history.best['test_accuracy']:.2f}% ±" in text
    assert "JPEG-coded" in text and "/tmp/" not in text
