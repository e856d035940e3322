"""The README, the guide and the layout say what is there."""

import ast
import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from matplotlib.figure import Figure

import eva_utils as eva
from cells import CLONE, made_smaller, python_of, run
from conftest import ROOT
from eva_utils.utils import page as pages
from eva_utils.utils.assignments import BRIEFS, Brief
from eva_utils.utils.history import History
from eva_utils.utils.options import make_parser
from eva_utils.utils.sections import plus_minus
from eva_utils.utils.transforms import RECIPES, train_transform

README, GUIDE, LAYOUT = PAGES = ("README.md", "docs/guide.md", "docs/layout.md")
BY_HAND = [*PAGES, "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("assignment/*/EXPERIMENTS.md"))]
# The README's cells are run as they are but for these: the real datasets and networks made small, Drive elsewhere.
SMALLER = {
    '"cifar10", root="data"': '"shapes", limit=10',
    "limit=2000": "limit=10",
    "epochs=5": "epochs=1",
    "epochs=40": "epochs=1",
    "epochs=20": "epochs=1",
    ', "layer4"]': "]",
    'resnet18(num_classes=10, norm="layer", last_stride=1)': "small_resnet(num_classes=10)",
    'resnet18(num_classes=10, norm="batch")': 'small_resnet(num_classes=10, norm="batch")',
    "/content/drive": "drive",
}


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def section(page, title):
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of(page), re.DOTALL | re.MULTILINE)[1]


def cells(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def inline_code(page):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}


def tree():
    """Paths of the captioned tree: two spaces of indent a level, folders end with a slash."""
    block = re.search(r"\A\n+```\n(.*?)```", section(LAYOUT, "What is where"), re.DOTALL)[1]
    folders, paths = [], {}
    for line in block.splitlines():
        name, caption = re.fullmatch(r"( *\S+)(?:  +(.*))?", line).groups()
        depth = (len(name) - len(name.lstrip())) // 2
        folders[depth:] = [name.strip()]
        paths["".join(folders)] = caption
    return paths


def test_the_tree_matches_the_disk():
    listed, tracked = tree(), tracked_files()
    assert all(caption for caption in listed.values())
    for path in listed:
        assert any(file.startswith(path) for file in tracked) if path.endswith("/") else path in tracked, path
    explained = {path for path in tracked if path.startswith(("eva_utils/", "docs/"))} - {"eva_utils/utils/__init__.py"}
    assert explained - set(listed) == set()
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked if not path.startswith(".")}
    assert top - set(listed) == set()


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", BY_HAND)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_no_longer_than_120_columns(page):
    long = [line for line in text_of(page).splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert long == []


@pytest.mark.parametrize("page", [README, GUIDE])
def test_a_figure_is_the_last_line_of_its_cell(page):
    assert cells(text_of(page))
    for cell in cells(text_of(page)):
        above = ast.parse(python_of(cell)).body[:-1]
        shown = [ast.unparse(line) for line in above if isinstance(line, ast.Expr)]
        assert not any(line.startswith("eva.plot_") for line in shown), cell


def calls(page):
    """Yield the calls in the page's cells and in its text, as far as that is Python."""
    for code in [*map(python_of, cells(text_of(page))), *inline_code(page)]:
        try:
            found = ast.parse(code)
        except SyntaxError:
            continue
        yield from (node for node in ast.walk(found) if isinstance(node, ast.Call))


@pytest.mark.parametrize("page", [README, GUIDE])
def test_what_is_called_is_there_and_takes_these_arguments(page):
    for name in re.findall(r"\beva\.(\w+)", text_of(page)):
        assert name in eva.__all__, name
    checked = 0
    for call in calls(page):
        name = ast.unparse(call.func).removeprefix("eva.")
        if name in eva.__all__:
            taken = inspect.signature(getattr(eva, name)).parameters
            others = any(kind.kind is kind.VAR_KEYWORD for kind in taken.values())
            assert others or {key.arg for key in call.keywords} <= set(taken), ast.unparse(call)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", PAGES)
def test_options_and_targets_of_the_shell_are_there(page):
    others = {"--quiet", "--nproc-per-node", "--logdir"}  # git's and pip's, torchrun's, TensorBoard's
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text_of(page)))
    assert options - others - set(make_parser()._option_string_actions) == set()
    lines = [*inline_code(page), *text_of(page).splitlines()]
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    assert targets - set(re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE)) == set()


def test_the_first_cell_clones_and_asks_for_no_account():
    assert cells(text_of(README))[0].startswith(CLONE)


def test_tinyimagenet_is_fetched_once(tmp_path):
    """Unzip, run again, would wait for an answer that no cell can give."""
    command = re.search(r"`!([^`]*tiny-imagenet-200\.zip -d data)`", section(GUIDE, "Data"))[1]
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    fakes = "wget() { echo wget >> log; }; unzip() { echo unzip >> log; mkdir -p data/tiny-imagenet-200; }\n"
    for _ in range(2):
        subprocess.run(["bash", "-c", fakes + command], cwd=tmp_path)
    assert (tmp_path / "log").read_text().split() == ["wget", "unzip"]


def in_colab(monkeypatch):
    """Put in place what a notebook of Colab imports; return what was downloaded."""
    downloaded: list[str] = []
    colab = ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=lambda path: Path(path).mkdir())
    colab.files = SimpleNamespace(download=downloaded.append)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    return downloaded


def verdicts(table):
    """What preflight's table says of each of its checks."""
    return {name: verdict for verdict, name in re.findall(r"^(pass|FAIL|open)  (\S.*?)  +\S", table, re.MULTILINE)}


def test_the_readmes_cells_run(tmp_path, monkeypatch, capsys):
    """Section by section, as they stand; what is lost and handed in is the run of S8."""
    assert all(real in text_of(README) for real in SMALLER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    # The reports have the curves for every figure: to draw the others takes seconds, and the cells draw them too.
    monkeypatch.setattr(
        pages, "_figures", lambda record: dict.fromkeys(pages.FIGURES, eva.plot_history(eva.History(record["rows"])))
    )
    downloaded, names = in_colab(monkeypatch), {}
    for cell in [*cells(section(README, "First five minutes")), *cells(section(README, "EVA6 S8"))]:
        shown = run(made_smaller(cell, SMALLER), names)
        assert "eva.plot_" not in cell or isinstance(shown, Figure)
        if "eva.preflight" in cell:
            assert set(verdicts(section(GUIDE, "Preflight"))) <= set(verdicts(str(shown)))
    assert [record.index for record in names["predictions"].wrong(20)]
    for title in ("EVA8 S7", "Your own model", "Nothing is lost", "Hand in"):
        own = dict(names)
        found = cells(section(README, title))
        assert found
        shown = [run(made_smaller(cell, SMALLER), own) for cell in found]
        if title == "Your own model":
            said = verdicts(str(shown[-1]))
            assert said["rule: Grad-CAM layers"] == said["rule: normalization"] == "pass"
            assert "FAIL" not in [verdict for name, verdict in said.items() if not name.startswith("rule: ")]
    assert all((tmp_path / "runs" / name / "best.pt").exists() for name in ("try", "s8", "s7"))
    kept = {path.name for path in (tmp_path / "drive" / "MyDrive" / "runs" / "s8").iterdir()}
    assert {"best.pt", "history.json", "README.md", "figures", "report.pt"} < kept
    assert downloaded == ["s8.zip"]
    report = (tmp_path / "runs" / "s8" / "README.md").read_text(encoding="utf-8")
    assert "Your Name" in report.split("##")[0] and "## Remarks\n\n> What I found, in *Markdown*." in report
    capsys.readouterr()
    own = dict(names)
    for cell in cells(section(GUIDE, "For teachers")):
        run(made_smaller(cell, SMALLER), own)
    assert capsys.readouterr().out.startswith("runs/s8: Your Name, EVA6 S8: CIFAR-10 with LayerNorm and Grad-CAM: ")


def test_a_mirror_leaves_a_report_beside_its_run_alone(tmp_path, monkeypatch):
    """As the README has it copied there; the run goes on, and comes back without it."""
    monkeypatch.chdir(tmp_path)
    data, mirror = eva.load_data("shapes", limit=20), tmp_path / "mirror"
    options = {"checkpoint": "run", "mirror": mirror, "resume": "auto", "log": None}
    eva.fit(eva.small_resnet(), data.train, data.test, epochs=1, **options)
    (mirror / "figures").mkdir()
    for name in ("README.md", "report.pt", "figures/curves.png"):
        (mirror / name).write_text("mine")
    eva.fit(eva.small_resnet(), data.train, data.test, epochs=2, **options)
    shutil.rmtree("run")
    assert len(eva.fit(eva.small_resnet(), data.train, data.test, epochs=2, **options)) == 2
    assert all((mirror / name).read_text() == "mine" for name in ("README.md", "report.pt", "figures/curves.png"))
    assert not (tmp_path / "run" / "README.md").exists()


def texts():
    """Yield the texts of the source, of an f-string its parts: None is a value."""
    for path in (ROOT / "eva_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]


def is_said(message, parts):
    """Whether a message, or its beginning, is that of a text of the source, whatever the values in it."""
    place, fixed, value = 0, 0, True  # what stands before a text names the error, or where it was raised
    for part in parts:
        if part is None:
            value = True
            continue
        found = message.find(part, place)
        if found < 0 or not (value or found == place):
            cut = any(message[place:].endswith(part[:length]) for length in range(15, len(part)))
            return cut or (value and fixed >= 15)
        place, fixed, value = found + len(part), fixed + len(part), False
    return fixed >= 15 and (value or place == len(message))


def test_messages_are_those_of_the_source():
    """That is, those which a heading or a bold line quotes."""
    said = [parts for parts in texts() if any(len(part or "") >= 15 for part in parts)]
    quoted = re.findall(r"^### .*`(\w+: [^`]*)`$|^- \*\*`([^`]*)`\*\*", text_of(README) + text_of(GUIDE), re.MULTILINE)
    messages = [one or other for one, other in quoted]
    assert len(messages) >= 12
    for message in messages:
        assert "No module named" in message or any(is_said(message, parts) for parts in said), message


def test_the_guides_briefs():
    assert {field.name for field in dataclasses.fields(Brief)} <= {*inline_code(GUIDE), "title", "objective"}
    names: dict = {"eva": eva}
    own, changed = cells(section(GUIDE, "A brief of your own"))[:2]
    exec(own, names)
    assert names["brief"].depth == 18
    exec(changed, names)
    assert names["brief"].epochs == 20 and names["brief"].layers == BRIEFS["eva6_s8"].layers


def test_the_guides_penalty_is_of_the_training_loss_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(eva, "write_report", lambda *_: None)  # whose figures take seconds to draw
    small = {'"mnist", root="data", batch_size=64': '"shapes", batch_size=20, limit=40', "epochs=10": "epochs=1"}
    names: dict = {"eva": eva}
    chosen = [cell for cell in cells(section(GUIDE, "The next assignments")) if "cross_entropy_l1" in cell]
    figure = [run(made_smaller(cell, {**small, "1e-5": "1.0"}), names) for cell in chosen][-1]
    assert isinstance(figure, Figure) and [*names["runs"]] == ["batch norm", "layer norm", "group norm"]
    row, settings = names["runs"]["batch norm"].rows[0], names["runs"]["batch norm"].settings
    assert row["train_loss"] > 1000 > 10 > names["runs"]["layer norm"].rows[0]["train_loss"] and row["test_loss"] < 100
    assert settings["criterion"]["factor"] == 1


def test_the_guides_recipes():
    rows = re.findall(r"^\| `(\w+)` \| (`Random.*|nothing.*) \|$", text_of(GUIDE), re.MULTILINE)
    assert [name for name, _ in rows] == [*(name for name in RECIPES if name != "none"), "none"]
    for name, steps in rows:
        made = [repr(part) for part in train_transform(name, (0.5,), (0.5,))]
        assert re.findall(r"`(.*?)`", steps) == [step for step in made if not step.startswith("Normalize")]


def test_the_teachers_command_names_one_account_everywhere(tmp_path):
    command = re.search(r"^sed .*$", section(GUIDE, "For teachers"), re.MULTILINE)[0]
    if sys.platform != "linux" or shutil.which("sed") is None:
        pytest.skip("needs GNU sed")
    address = re.compile(r"github(?:\.com)?/OWNER")
    for name in tracked_files():
        if name.endswith((".md", ".ipynb", ".py")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    before = [path for path in tmp_path.rglob("*.*") if address.search(path.read_text(encoding="utf-8"))]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert len(before) == 5
    assert all(not address.search(path.read_text(encoding="utf-8")) for path in before)
    assert all("/your-account/eva_utils" in path.read_text(encoding="utf-8") for path in before)


def test_the_table_of_results_says_what_the_records_say():
    lines = section(README, "Results").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    for name, best, last, *_ in rows:
        report = re.search(r"\]\((assignment/\w+)/README\.md\)", name)
        history = History.load(ROOT / (report[1] if report else "benchmarks/records/eva6_s8-std"))
        accuracy, epoch = history.best["test_accuracy"], history.best["epoch"]
        assert best == f"{accuracy:.2f}% ± {plus_minus(accuracy, 10_000):.2f}, {epoch}"
        assert last == f"{history.rows[-1]['test_accuracy']:.2f}%"
    assert len(rows) == 5
