"""What TensorBoard's own reader finds in the files."""

import builtins

import pytest

from eva_utils.utils.history import History
from eva_utils.utils.tensorboard import write_tensorboard

ROWS = [
    {"epoch": n, "train_loss": 2 / n, "train_accuracy": 10.0 * n, "test_loss": 3 / n, "test_accuracy": 9.0 * n,
     "lr": 0.1 / n, "seconds": 5.0 + n}
    for n in (1, 2, 3)
]  # fmt: skip


def test_read_back_by_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert write_tensorboard(History(rows=ROWS), tmp_path / "first") == tmp_path / "first"
    events = reader.EventAccumulator(str(tmp_path / "first")).Reload()
    columns = {
        "loss/train": "train_loss", "loss/test": "test_loss", "accuracy/train": "train_accuracy",
        "accuracy/test": "test_accuracy", "learning_rate": "lr", "seconds": "seconds",
    }  # fmt: skip
    assert sorted(events.Tags()["scalars"]) == sorted(columns)
    for tag, column in columns.items():
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        assert read == [(row["epoch"], pytest.approx(row[column], rel=1e-6)) for row in ROWS]


def test_a_folder_with_files_and_an_empty_record_are_refused(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="holds files already, and TensorBoard would mix two runs; name a new folder"):
        write_tensorboard(History(rows=ROWS), tmp_path)
    with pytest.raises(TypeError, match="write_tensorboard takes what fit returned, not list"):
        write_tensorboard(ROWS, tmp_path / "new")
    with pytest.raises(ValueError, match="no epoch has finished, so there is nothing to write"):
        write_tensorboard(History(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install tensorboard, or '\./eva_utils\[tensorboard\]'"):
        write_tensorboard(History(rows=ROWS), tmp_path / "new")
