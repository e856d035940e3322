"""What is on disk survives damage, and is never written over."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import checkpoint as disk
from eva_utils.utils import verified
from eva_utils.utils.history import History
from eva_utils.utils.run_folder import RunFolder
from eva_utils.utils.runtime import seed_everything
from runs import Restless, StopAfter, assert_equal_weights, make_run, without_time


def test_what_a_run_leaves_on_disk(tmp_path):
    model, history = make_run(epochs=4, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",         "best.pt", "epoch-0003.pt", "epoch-0004.pt", "history.json", "last.pt",
    ]  # fmt: skip
    assert json.loads((tmp_path / "history.json").read_text())["rows"] == history.rows
    assert_equal_weights(torch.load(tmp_path / "last.pt", weights_only=True), model.state_dict())
    best = Restless(TinyNet())
    disk.load_weights(best, tmp_path, "best")
    score = engine.test(best, DataLoader(random_batches(13, seed=4), batch_size=8), precision="float32")
    assert (score.accuracy, score.loss) == (history.best["test_accuracy"], history.best["test_loss"])


@pytest.mark.parametrize(("ema", "times"), [(None, 6), (0.9, 8)])
def test_a_run_takes_six_times_its_weights_on_disk_and_eight_with_their_average(ema, times, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1300), nn.Linear(1300, 4))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loader = DataLoader(random_batches(16), batch_size=8)
    engine.fit(model, loader, loader, epochs=3, ema=ema, checkpoint=tmp_path, **QUIET)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == pytest.approx(times * weights, rel=0.05)


def test_a_finished_run_returns_its_history_and_weights(tmp_path):
    model, history = make_run(epochs=3, checkpoint=tmp_path)
    again_model, again = make_run(epochs=3, checkpoint=tmp_path, resume="auto")
    assert again.rows == history.rows
    assert_equal_weights(again_model.state_dict(), model.state_dict())


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    make_run(epochs=2, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"already holds a run; continue it with resume='auto'"):
        make_run(epochs=3, checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_without_their_epochs_are_neither_resumed_nor_written_over(tmp_path):
    make_run(epochs=2, checkpoint=tmp_path)
    for path in tmp_path.glob("epoch-*.pt"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for resume in (True, "auto"):
        with pytest.raises(ValueError, match=r"holds best\.pt and no epoch-\*\.pt to resume from; put those back"):
            make_run(epochs=3, checkpoint=tmp_path, resume=resume)
    (tmp_path / "history.json").unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        make_run(epochs=3, checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: content for name, content in before.items() if name != "history.json"
    }


def test_numpys_numbers_are_saved_as_pythons(tmp_path):
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=np.float64(0.1), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 * (1 + np.cos(np.pi * epoch / 5)))
    loader = DataLoader(random_batches(22), batch_size=8)
    history = engine.fit(
        model, loader, loader, epochs=3, optimizer=optimizer, scheduler=scheduler, checkpoint=tmp_path, **QUIET
    )
    assert [type(row["lr"]) for row in history.rows] == [float] * 3
    assert json.loads((tmp_path / "history.json").read_text())["rows"] == history.rows


def test_workers_do_not_keep_the_lock(tmp_path):
    samples = random_batches(16)
    loader = DataLoader(samples, batch_size=8, num_workers=1, persistent_workers=True)
    test_loader, model = DataLoader(samples, batch_size=8), TinyNet()
    for epochs in (1, 2):
        history = engine.fit(model, loader, test_loader, epochs=epochs, checkpoint=tmp_path, resume="auto", **QUIET)
    assert len(history) == 2


def test_resume_needs_a_run_unless_auto(tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume; resume='auto' starts one"):
        make_run(checkpoint=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="resume is True, False or 'auto', not 'yes'"):
        make_run(checkpoint=tmp_path, resume="yes")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        make_run(checkpoint=tmp_path / "file")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    model, history = make_run(epochs=4)
    make_run(epochs=3, checkpoint=tmp_path)
    damaged = tmp_path / "epoch-0003.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    lines = []
    resumed_model, resumed = make_run(epochs=4, checkpoint=tmp_path, resume=True, log=lines.append)
    assert "epoch-0003.pt is damaged" in lines[0] and lines[1].startswith("Resuming after epoch 2 of 4")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    for path in tmp_path.glob("epoch-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged; choose another folder"):
        make_run(epochs=5, checkpoint=tmp_path, resume=True)


def save_run(folder, accuracies):
    """Put epochs of these accuracies on disk, in each of which the only weight is the epoch's number."""
    rows = [{"epoch": number, "test_accuracy": found} for number, found in enumerate(accuracies, 1)]
    for epoch in range(1, len(rows) + 1):
        record = History(rows[:epoch], {"epochs": 3})
        state = {"epoch": epoch, "model": {"w": torch.tensor(epoch)}, "history": {**vars(record)}}
        disk.save_epoch(folder, state, record.to_json(), record.best["epoch"])


@pytest.mark.parametrize(
    ("accuracies", "best"), [((50.0, 40.0, 60.0), None), ((60.0, 40.0, 50.0), 1), ((40.0, 50.0, 60.0), 2)]
)
@pytest.mark.parametrize("readable", [True, False])
def test_the_best_weights_of_an_epoch_that_was_dropped_are_not_kept(accuracies, best, readable, tmp_path):
    save_run(tmp_path, accuracies)
    (tmp_path / "epoch-0003.pt").write_bytes(b"damaged")
    if not readable:
        (tmp_path / "history.json").write_text('{"rows": [')
        best = 2 if best == 2 else None  # nothing says of which epoch it is
    removed = []
    for _ in range(2):  # the second time nothing is left to be dropped
        lines = []
        folder = RunFolder(tmp_path, None, True, lines.append)
        with folder.opened() as saved:
            folder.take_up(saved, History(**saved["history"]), 3)
        assert lines[-1].startswith("Resuming after epoch 2 of 3")
        found = verified.load_verified(tmp_path / "best.pt")["w"] if (tmp_path / "best.pt").exists() else None
        assert found == best and verified.load_verified(tmp_path / "last.pt")["w"] == 2
        removed.append([line.split("; ")[1] for line in lines if "best.pt is removed, since" in line])
    told = "the weights of epoch 1, the best one left, are gone, and a better epoch writes it anew"
    assert removed == [[] if best else [told], []]
    if not best:
        with pytest.raises(FileNotFoundError, match=r"best\.pt was lost with a damaged epoch; take which='last', or"):
            disk.load_weights(TinyNet(), tmp_path)
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-0002.pt"]


class Versioned(nn.Linear):
    """Loads only what a module of its version saved, as torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("older", [False, True])
def test_a_module_finds_its_version_again(ema, older, tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        loader = DataLoader(random_batches(22), batch_size=8, shuffle=True)
        model = nn.Sequential(TinyNet(6), Versioned(6, 4))
        return model, engine.fit(model, loader, loader, epochs=3, **{**QUIET, "ema": ema, "log": log, **options})

    model, _ = run()
    run(log=StopAfter(2), checkpoint=tmp_path)
    for path in tmp_path.glob("*.pt"):
        saved = verified.load_verified(path)
        for name, weights in saved.items() if "epoch" in saved else [("", saved)]:
            if name in ("", "model", "ema"):
                inner = "module.1" if name == "ema" else "1"
                assert weights._metadata[inner] == {"version": 2}
                if older:
                    del weights._metadata
        verified.save_verified(path, saved)
    loaded = disk.load_weights(nn.Sequential(TinyNet(6), Versioned(6, 4)), tmp_path, "last")
    assert_equal_weights(loaded.state_dict(), verified.load_verified(tmp_path / "last.pt"))
    resumed, _ = run(checkpoint=tmp_path, resume=True)
    assert_equal_weights(resumed.state_dict(), model.state_dict())


def test_load_weights_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"best\.pt does not exist; give the folder that fit"):
        disk.load_weights(TinyNet(), tmp_path)
    with pytest.raises(TypeError, match=r"Module, not str; pass the model itself, as load_weights\(model, 'runs/s8'\)"):
        disk.load_weights(str(tmp_path), TinyNet())
    with pytest.raises(ValueError, match="which is 'best' or 'last', not 'first'"):
        disk.load_weights(TinyNet(), tmp_path, "first")
    verified.save_verified(tmp_path / "best.pt", TinyNet(5).state_dict())
    with pytest.raises(ValueError, match=r"does not fit this TinyNet: 'fc\.weight' is \(5, 6\) in the file"):
        disk.load_weights(TinyNet(4), tmp_path)
    model = TinyNet(5)
    assert disk.load_weights(model, tmp_path) is model
    with pytest.raises(ValueError, match=r"best\.pt is a file; give its folder, and which='best' or 'last'"):
        disk.load_weights(model, tmp_path / "best.pt")
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:-1])
    with pytest.raises(verified.DamagedFileError, match=r"best\.pt is damaged"):
        disk.load_weights(model, tmp_path)
