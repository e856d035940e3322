"""The assignments' notebooks, cell by cell in this process, and one in a kernel in the folder above a bare clone."""

import ast
import json
import re
import warnings

import nbformat
import pytest

import eva_utils
from assignment.run_notebook import as_shown, keep_outputs
from cells import CLONE, made_smaller, run
from conftest import ROOT
from eva_utils.models import create_model
from eva_utils.utils import page
from eva_utils.utils.assignments import BRIEFS
from eva_utils.utils.brief import audit_plan
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History
from eva_utils.utils.plotting import plot_history
from eva_utils.utils.seal import is_sealed
from eva_utils.utils.verified import load_verified

# One cycle peaks after half of a short run, which may not be its first batch; the finder of eva6_s9 wants 16 batches.
PARAMETERS = {
    "eva6_s8": {"limit": 10, "epochs": 3},
    "eva6_s9": {"limit": 16, "epochs": 2, "batch_size": 1},
    "eva8_s7": {"limit": 10, "epochs": 3},
    "eva8_s10": {"limit": 10, "epochs": 3},
}
SMALLER = {
    "eva6_s9": {"eva.davidnet(": "eva.small_resnet(", "data.train, optimizer)": "data.train, optimizer, steps=20)"},
    "eva8_s7": {"eva.resnet18(": "eva.small_resnet("},
}
# What an assignment chooses beside the ten calls or so that all have: filters of mean 0, and a rate.
CHOSEN = {
    f"eva.{name}"
    for name in (
        *("center_filters", "param_groups", "lr_find", "plot_lr_find"),
        *("one_cycle", "plot_schedule", "learning_rates"),
    )
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
    assert 8 <= len(set(own) - CHOSEN) <= 12
    network = f"eva.{BRIEFS[path.stem].options['model']}"
    assert {network, "eva.fit", "eva.plot_gradcam", "eva.write_report"} < set(own)
    assert ("eva.center_filters" in own) == BRIEFS[path.stem].options.get("center_filters", False)
    assert code[0].startswith(CLONE)
    (parameters,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert f"epochs = {BRIEFS[path.stem].epochs}\n" in "".join(parameters["source"])
    badge = "".join(cells(path, "markdown")[0]["source"])
    assert f"assignment/{path.stem}/{path.name})" in badge and "colab-badge.svg" in badge


def test_every_brief_of_a_course_has_its_notebook():
    assert {path.stem for path in NOTEBOOKS} == set(BRIEFS) - {"speedrun"}


def source_of(name, cell):
    source = "".join(cell["source"])
    assert "eva.fit" not in source or not any(real in source for real in SMALLER.get(name, {}))
    return made_smaller(source, SMALLER.get(name, {}))


def check(name, folder, shown, printed):
    """The report that a small run of a notebook leaves, what its last cell shows and what all have printed."""
    epochs = PARAMETERS[name]["epochs"]
    assert "README.md is written" in shown and "FAIL         epochs" in shown
    assert f"EPOCH: {epochs}" in printed and " LR=0." in printed and "100%|" in printed
    text = (folder / "README.md").read_text(encoding="utf-8")
    required = ", ".join(BRIEFS[name].classes)
    assert f"| epochs | {BRIEFS[name].epochs} | {epochs} | **FAIL** |" in text
    assert f"| classes | {required} | circle" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    verdicts = {cell[0]: cell[3] for cell in rows if len(cell) == 4}
    kept = {"learning rate", "training transforms", "misclassified images", "notebook"} & set(verdicts)
    assert "misclassified images" in kept and ("notebook" in kept) == BRIEFS[name].plain_notebook
    assert {verdicts[rule] for rule in kept} == {"pass"}
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"curves", "confusion", "misclassified", "misclassified_gradcam"} <= figures


@pytest.mark.parametrize("name", ["eva6_s8", "eva6_s9", "eva8_s10"])
def test_the_notebooks_cells_run_and_leave_their_report(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The report has the curves for every figure: to draw the others takes seconds, and the cells draw them too.
    monkeypatch.setattr(
        page, "_figures", lambda record: dict.fromkeys(page.FIGURES, plot_history(History(record["rows"])))
    )
    names: dict = {}
    for cell in cells(ROOT / "assignment" / name / f"{name}.ipynb"):
        shown = run(source_of(name, cell), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(PARAMETERS[name], source="shapes", run="run")
    check(name, tmp_path / "run", str(shown), capsys.readouterr().out)


def test_a_notebook_runs_in_a_kernel_and_leaves_its_report(clone, tmp_path):
    """The one whose rule is about the cells that were run, which a kernel knows; above a bare clone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill

    name, folder = "eva8_s7", tmp_path / "run"
    path = clone / "eva_utils" / "assignment" / name / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = source_of(name, cell)
    nbformat.write(notebook, tmp_path / path.name)
    executed = papermill.execute_notebook(
        str(tmp_path / path.name),
        None,
        parameters={"source": "shapes", "run": str(folder), **PARAMETERS[name]},
        cwd=str(clone),
        kernel_name="python3",
        progress_bar=False,
    )
    check(name, folder, json.dumps(executed.cells[-1]["outputs"]), json.dumps(executed))


def network_of(name, data):
    """The model that an assignment's notebook builds, without one that its options name."""
    path, options = ROOT / "assignment" / name / f"{name}.ipynb", BRIEFS[name].options
    if not path.exists():
        return create_model(options["model"], norm=options["norm"], standardize=options["standardize"])
    (line,) = [line for cell in cells(path) for line in "".join(cell["source"]).splitlines() if line[:8] == "model = "]
    return eval(line.removeprefix("model = "), {"eva": eva_utils, "data": data})


@pytest.mark.parametrize("name", BRIEFS)
def test_the_network_of_an_assignment_keeps_its_rules(name):
    data, brief = load_data("shapes", limit=10), BRIEFS[name]
    found = {each.rule: each for each in audit_plan(brief, network_of(name, data), data).findings}
    asked = {
        "network": brief.model,
        "convolutions and linear layers": brief.depth,
        "normalization": brief.norm,
        "Grad-CAM layers": brief.layers,
        "Grad-CAM maps": brief.least_map,
    }
    verdicts = {rule: found[rule].verdict for rule, required in asked.items() if required is not None}
    assert verdicts and set(verdicts.values()) == {"pass"}


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
