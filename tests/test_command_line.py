"""The command line, only ever as a process of its own."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from eva_utils.utils.history import History


def run(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs, stopped after the first and resumed; returns its folder and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--data", "shapes", "--limit", 64, "--recipe", "eva6_s8", "--norm", "group", "--out", out]
    printed = run(*options, "--epochs", 1), run(*options, "--epochs", 2, "--resume")
    return out, printed


def test_a_run_writes_its_record_weights_and_curves(finished):
    out, (first, second) = finished
    assert "Total params: 1,923,914" in first and "EPOCH: 1" in first and "Resuming after epoch 1 of 2" in second
    assert {"best.pt", "command.json", "curves.png", "history.json", "last.pt"} < {path.name for path in out.iterdir()}
    history = History.from_json((out / "history.json").read_text())
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert f"Best: {history.best['test_accuracy']:.2f}% at epoch {history.best['epoch']}" in second
    note = json.loads((out / "command.json").read_text())
    assert note["options"]["norm"] == "group" and note["classes"][0] == "circle"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_scored_again_as_recorded(finished):
    out, _ = finished
    history = History.from_json((out / "history.json").read_text())
    printed = run("--evaluate", out, "--data", "shapes", "--limit", 64)
    for which, row in (("best", history.best), ("last", history.rows[-1])):
        assert f"{which}.pt, epoch {row['epoch']}: " in printed
        score = f"({row['test_accuracy']:.2f}%), loss {row['test_loss']:.4f}; "
        assert score + f"the record says {row['test_accuracy']:.2f}% of the test images" in printed


def test_other_data_than_the_runs_is_refused(finished, image_folder):
    printed = run("--evaluate", finished[0], "--data", image_folder, code=2)
    assert "was trained on the classes circle, ring" in printed and "has cat, dog; give the data" in printed


def test_a_folder_that_holds_a_run_is_refused(finished):
    out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "already holds a run" in run("--out", out, "--limit", 64, code=2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_help_lists_titled_groups_with_defaults():
    printed = run("--help")
    for title in ("data:", "model:", "training:", "machine:", "run:"):
        assert f"\n{title}\n" in printed
    assert "(default: 128)" in printed and "--recipe {none,eva6_s8,eva8_s7}" in printed
