"""A handed-in report is held to its record."""

import json
import re
import shutil

import pytest
import torch
from torch.optim import SGD

import eva_utils as eva
from conftest import TinyNet
from eva_utils.utils import figures, page
from eva_utils.utils.verified import DamagedFileError, load_verified, save_verified


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("handed") / "ada", eva.load_data("shapes", limit=80, recipe="eva8_s7")
    torch.manual_seed(1)
    model = TinyNet(10)
    optimizer = SGD(model.parameters(), lr=0.05)
    history = eva.fit(model, data.train, data.test, epochs=2, optimizer=optimizer, checkpoint=folder, log=None)
    with pytest.MonkeyPatch.context() as patch:  # the other figures take seconds to draw
        curves = eva.plot_history(history)
        patch.setattr(page, "_figures", lambda record: dict.fromkeys(page.FIGURES, curves))
        report = eva.write_report(folder, model, data, "eva8_s7", author="Ada", remarks="![mine](figures/mine.png)")
    return folder, history, report


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "ada")


def test_a_report_is_read_from_its_record(written, folder):
    _, history, report = written
    found = eva.check_report(folder)
    verdicts = [finding.verdict for finding in report.audit.findings]
    assert (found.author, found.accuracy, found.epoch) == ("Ada", history.best["test_accuracy"], history.best["epoch"])
    assert found.verdicts == {verdict: verdicts.count(verdict) for verdict in ("pass", "FAIL", "not checked")}
    assert found.problems == () and found.run == eva.check_report(str(folder)).run
    assert repr(found) == (
        f"{folder}: Ada, EVA8 S7: ResNet-18 on CIFAR-10 with Grad-CAM: {found.accuracy:.2f}% at epoch {found.epoch}; "
        f"audit: {verdicts.count('pass')} pass, {verdicts.count('FAIL')} FAIL, "
        f"{verdicts.count('not checked')} not checked; run {found.run}; "
        "the page is the record's, the figures are unedited"
    )
    record = load_verified(folder / "report.pt")
    save_verified(folder / "report.pt", {**record, "author": "Ada\nruns/zz: Bob", "title": "One\r\u2028Two"})
    assert repr(eva.check_report(folder)).startswith(f"{folder}: Ada runs/zz: Bob, One Two: ")
    record["predictions"]["probabilities"][0] = record["predictions"]["probabilities"][0].flip(0)
    save_verified(folder / "report.pt", record)
    other = eva.check_report(folder).run
    assert re.fullmatch("[0-9a-f]{8}", found.run) and re.fullmatch("[0-9a-f]{8}", other) and other != found.run


def test_ends_of_lines_are_no_edit_and_a_file_is_no_folder(folder):
    (folder / "README.md").write_bytes((folder / "README.md").read_bytes().replace(b"\n", b"\r\n"))
    assert eva.check_report(folder).problems == ()
    with pytest.raises(NotADirectoryError, match=r"README\.md is a file; give the folder"):
        eva.check_report(folder / "README.md")


def test_what_is_not_the_records_is_named(folder):
    readme, figures = folder / "README.md", folder / "figures"
    readme.write_text(readme.read_text(encoding="utf-8").replace("FAIL", "pass"), encoding="utf-8")
    (figures / "curves.png").write_bytes(b"another")
    (figures / "confusion.png").unlink()
    record = json.loads((folder / "history.json").read_text())
    record["rows"][0]["test_accuracy"] += 1
    (folder / "history.json").write_text(json.dumps(record))
    assert eva.check_report(folder).problems == (
        "README.md was edited",
        "curves.png was not drawn here, or was edited",
        "confusion.png is missing",
        "history.json is not the record's",
    )
    shutil.rmtree(figures)
    (folder / "history.json").write_text("{")
    readme.unlink()
    problems = eva.check_report(folder).problems
    assert problems[0] == "README.md is missing" and problems[-1] == "history.json is not the record's"


def test_a_page_of_another_record_is_found_though_its_mark_is_whole(folder):
    record = eva.check_report(folder)
    readme = folder / "README.md"
    body = readme.read_text(encoding="utf-8").rsplit("<!-- written", 1)[0]
    readme.write_bytes(page.seal_text(body.replace(f"{record.accuracy:.2f}%", "99.00%")))
    assert eva.check_report(folder).problems == ("README.md is of another record or version",)


def test_a_figure_of_another_report_is_found_though_its_mark_is_whole(folder):
    other = page.seal_png(figures.png_bytes(eva.plot_schedule([0.1, 0.2])))
    (folder / "figures" / "correct.png").write_bytes(other)
    assert eva.check_report(folder).problems == ("correct.png is another report's",)


def test_a_report_of_an_earlier_version_does_not_know_its_figures(folder):
    record = load_verified(folder / "report.pt")
    del record["figures"]
    save_verified(folder / "report.pt", record)
    other = page.seal_png(figures.png_bytes(eva.plot_schedule([0.1, 0.2])))
    (folder / "figures" / "correct.png").write_bytes(other)
    assert eva.check_report(folder).problems == ()


def test_a_checkpoint_in_the_records_place_is_refused(folder):
    shutil.copy(folder / "last.pt", folder / "report.pt")
    with pytest.raises(ValueError, match=r"report\.pt is no report's record; ask for the one that write_report left"):
        eva.check_report(folder)


def test_a_report_without_its_record_or_with_a_changed_one_is_refused(folder):
    content = (folder / "report.pt").read_bytes()
    (folder / "report.pt").write_bytes(content[:100] + b"x" + content[101:])
    with pytest.raises(DamagedFileError, match=r"report\.pt is damaged or was not saved by this package"):
        eva.check_report(folder)
    (folder / "report.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no report\.pt, which write_report leaves beside the README"):
        eva.check_report(folder)
