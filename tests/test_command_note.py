import json
import sys
from types import SimpleNamespace

import pytest

from eva_utils.utils import command_note, processes
from eva_utils.utils.command_note import add_command, begin_note, commands_of, read_note

DATA = SimpleNamespace(classes=["cat", "dog"], mean=(0.5,), std=(0.25,))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that `main.py --epochs 1` began."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--epochs", "1"])
    begin_note(tmp_path, {"epochs": 1, "out": tmp_path}, DATA)
    (tmp_path / "history.json").touch()
    return tmp_path


def test_a_note_holds_the_first_options_and_every_command_once(run, monkeypatch):
    begun = {"options": {"epochs": 1, "out": str(run)}, "classes": ["cat", "dog"], "mean": [0.5], "std": [0.25]}
    assert read_note(run) == {"commands": ["python main.py --epochs 1"], **begun}
    monkeypatch.setattr(sys, "argv", ["main.py", "--epochs", "2", "--out", "my runs"])
    monkeypatch.setattr(processes, "count", lambda: 2)
    begin_note(run, {"epochs": 2}, DATA)
    assert commands_of(run) == "python main.py --epochs 1"
    for _ in range(2):
        add_command(run)
    monkeypatch.setattr(processes, "count", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["/a/run_notebook.py", "eva8_s7", "--data", "images"])
    add_command(run, "assignment/run_notebook.py")
    lines = [
        "python main.py --epochs 1",
        "torchrun --nproc-per-node=2 main.py --epochs 2 --out 'my runs'",
        "python assignment/run_notebook.py eva8_s7 --data images",
    ]
    assert read_note(run) == {"commands": lines, **begun} and commands_of(run) == "\n".join(lines)


def test_the_note_of_a_run_that_never_began_is_none_and_is_written_anew(run):
    (run / "history.json").unlink()
    assert read_note(run) is None and commands_of(run) is None
    (run / "epoch-0001.pt").touch()  # as a kill in the first save leaves it
    assert commands_of(run) == "python main.py --epochs 1"
    (run / "epoch-0001.pt").unlink()
    add_command(run)
    begin_note(run, {"epochs": 9}, DATA)
    assert json.loads((run / "command.json").read_text())["options"] == {"epochs": 9}


@pytest.mark.parametrize("missing", ["commands", "options", "classes", "mean", "std", "epochs"])
def test_a_damaged_note_is_refused_and_says_no_commands(run, missing):
    note = read_note(run)
    (note["options"] if missing == "epochs" else note).pop(missing)
    for content in (json.dumps(note), "[]", "{"):
        (run / command_note.NAME).write_text(content)
        with pytest.raises(ValueError, match=r"command\.json is not what main\.py wrote \(.*\); restore or remove it"):
            read_note(run)
        assert commands_of(run) is None
    (run / command_note.NAME).unlink()
    assert read_note(run) is None
    add_command(run)
    assert not (run / command_note.NAME).exists()
