"""What is on disk survives kills and damage; a resumed run equals an undisturbed one bit for bit."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, TinyNet, random_batches
from test_main import SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from eva_utils import main as engine
from eva_utils.utils import checkpoint as disk
from eva_utils.utils import processes, verified
from eva_utils.utils.history import History
from eva_utils.utils.loader import Loader
from eva_utils.utils.run_folder import RunFolder
from eva_utils.utils.runtime import seed_everything
from eva_utils.utils.state import RunState
from eva_utils.utils.transforms import train_transform

QUIET = {"log": None, "device": "cpu", "precision": "float32"}


class Restless(nn.Module):
    """Draws from every generator as it trains, so that a resumed run must restore them all."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if self.training:
            x = x * (1 + 0.1 * (random.random() + np.random.rand()) + 0.1 * torch.randn(len(x), 1, 1, 1))
        return self.net(x)


def make_run(scheduler="plateau", epochs=5, **options):
    """Everything a run needs, made the same each time."""
    seed_everything(11)
    model = Restless(TinyNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(random_batches(22), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
    test_loader = DataLoader(random_batches(13, seed=4), batch_size=8)
    options = {"optimizer": optimizer, "scheduler": SCHEDULERS[scheduler](optimizer), **QUIET, **options}
    return model, engine.fit(model, loader, test_loader, epochs=epochs, **options)


def without_time(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


def check_resumes_exactly(run, folder):
    """`run` makes its parts anew, passes its options to fit, and returns the modules that train, and the record."""
    modules, history = run()
    run(log=StopAfter(2), checkpoint=folder, resume="auto")
    resumed_modules, resumed = run(checkpoint=folder, resume="auto")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_modules.state_dict(), modules.state_dict())


def test_a_sampler_with_a_generator_of_its_own_resumes_to_the_same_batches(tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        samples = random_batches(22)
        sampler = RandomSampler(samples, generator=torch.Generator().manual_seed(9))
        loader, model = DataLoader(samples, batch_size=8, sampler=sampler), TinyNet()
        return model, engine.fit(model, loader, loader, epochs=4, **{**QUIET, "log": log, **options})

    check_resumes_exactly(run, tmp_path)


class OwnBatches:
    """Batches of 8 of 22 images, drawn from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(9)

    def __len__(self):
        return 3

    def __iter__(self):
        yield from torch.randperm(22, generator=self.generator).split(8)


def test_a_batch_sampler_with_a_generator_of_its_own_resumes_to_the_same_batches(tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        loader, model = DataLoader(random_batches(22), batch_sampler=OwnBatches()), TinyNet()
        test_loader = DataLoader(random_batches(9), batch_size=9)
        return model, engine.fit(model, loader, test_loader, epochs=4, **{**QUIET, "log": log, **options})

    check_resumes_exactly(run, tmp_path)


class Scaled(nn.Module):
    """Cross entropy by a running mean of itself: a loss with a state and no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, logits, labels):
        loss = nn.functional.cross_entropy(logits, labels)
        if loss.requires_grad:
            self.scale.mul_(0.5).add_(0.5 * loss.detach())
        return loss / self.scale


def test_a_loss_with_a_state_and_a_test_loader_that_draws_are_resumed(tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        tests, generator = random_batches(40, seed=4), torch.Generator().manual_seed(9)
        test_loader = DataLoader(tests, batch_size=8, sampler=RandomSampler(tests, True, 16, generator=generator))
        loader, model, criterion = DataLoader(random_batches(22), batch_size=8, shuffle=True), TinyNet(), Scaled()
        options = {**QUIET, "log": log, "criterion": criterion, **options}
        return nn.ModuleList([model, criterion]), engine.fit(model, loader, test_loader, epochs=4, **options)

    check_resumes_exactly(run, tmp_path)


class Warming(TinyNet):
    """Scales its logits by a running number that is in no state_dict, as is a cache that may grow."""

    def __init__(self, grows):
        super().__init__()
        self.grows = grows
        self.register_buffer("heat", torch.ones(()), persistent=False)
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x):
        if self.training:
            self.heat.mul_(0.9)
            self.cache = torch.zeros(len(self.cache) + self.grows)
        return super().forward(x) * self.heat


@pytest.mark.parametrize("ema", [None, 0.9])
def test_buffers_that_are_in_no_state_dict_are_resumed_and_rolled_back(ema, tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        loader, model = DataLoader(random_batches(22), batch_size=8, shuffle=True), Warming(grows=ema is None)
        history = engine.fit(model, loader, loader, epochs=4, **{**QUIET, "ema": ema, "log": log, **options})
        heats.append(model.heat.item())
        sizes.append(len(model.cache))
        return model, history

    heats, sizes = [], []
    check_resumes_exactly(run, tmp_path)
    assert heats == pytest.approx([0.9**12, 0.9**6, 0.9**12], rel=1e-5)
    assert sizes == ([1, 1, 1] if ema else [13, 7, 13])


def test_workers_that_stay_are_started_before_the_generators_are_put_back(tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        workers = {"batch_size": 8, "num_workers": 1, "persistent_workers": True}
        loader = DataLoader(random_batches(22), shuffle=True, **workers)
        test_loader = DataLoader(random_batches(9), **workers)
        model = TinyNet()
        return model, engine.fit(model, loader, test_loader, epochs=4, **{**QUIET, "log": log, **options})

    check_resumes_exactly(run, tmp_path)


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_resumed_run_equals_an_undisturbed_one(scheduler, precision, tmp_path):
    model, history = make_run(scheduler, precision=precision)
    total = {"epochs": 5, "precision": precision, "checkpoint": tmp_path / "run", "resume": "auto"}
    stopped = StopAfter(2)
    make_run(scheduler, **{**total, "log": stopped})
    # Another state of every generator, as in a new process.
    resumed_model, resumed = make_run(scheduler, **total)
    assert stopped.lines[-1].startswith("Stopped in epoch 3")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert len({row["lr"] for row in history.rows}) > 1 or scheduler == "constant"


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_run_stopped_in_or_after_its_warmup_resumes_exactly(stopped_after, tmp_path):
    model, history = make_run("step", warmup=3)
    total = {"warmup": 3, "checkpoint": tmp_path / "run", "resume": "auto"}
    make_run("step", **total, log=StopAfter(stopped_after))
    resumed_model, resumed = make_run("step", **total)
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())


def test_a_run_of_averaged_weights_resumes_exactly_and_saves_the_average(tmp_path):
    model, history = make_run("plateau", ema=0.9)
    total = {"ema": 0.9, "checkpoint": tmp_path / "run", "resume": "auto"}
    stopped_model, stopped = make_run("plateau", **total, log=StopAfter(2))
    saved = Restless(TinyNet())
    disk.load_weights(saved, tmp_path / "run", "last")
    assert_equal_weights(stopped_model.state_dict(), saved.state_dict())
    raw = verified.load_verified(tmp_path / "run" / "epoch-0002.pt")["model"]
    assert any(not torch.equal(raw[name], saved.state_dict()[name]) for name in raw)

    resumed_model, resumed = make_run("plateau", **total)
    assert len(stopped) == 2 and without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    disk.load_weights(saved, tmp_path / "run", "last")
    assert_equal_weights(saved.state_dict(), model.state_dict())


class StopAfter:
    """A log that interrupts, as Ctrl-C would, when the epoch after the given one begins."""

    def __init__(self, epoch):
        self.epoch, self.lines = epoch, []

    def __call__(self, line):
        self.lines.append(line)
        if line == f"EPOCH: {self.epoch + 1}":
            raise KeyboardInterrupt


def test_our_loaders_resume_to_the_same_batches(tmp_path):
    def run(epochs_until_stop=None, **options):
        seed_everything(3)
        images = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8)
        transform = train_transform("eva8_s7", (0.5,) * 3, (0.2,) * 3)
        loader = Loader(images, torch.arange(30) % 4, transform, batch_size=8, shuffle=True, seed=5)
        model = TinyNet()
        log = StopAfter(epochs_until_stop) if epochs_until_stop else None
        return model, engine.fit(model, loader, loader, epochs=4, **{**QUIET, "log": log, **options})

    model, history = run()
    folder = {"checkpoint": tmp_path / "run", "resume": "auto"}
    run(epochs_until_stop=2, **folder)
    resumed_model, resumed = run(**folder)
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_checkpoint import make_run
model, history = make_run(epochs=30, precision={precision!r}, checkpoint={folder!r}, resume="auto", log=print)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize(("precision", "delays"), [("float32", (0.0, 0.03, 0.1)), ("bfloat16", (0.03,))])
def test_killed_at_any_moment_and_resumed_it_is_bit_identical(precision, delays, tmp_path):
    model, history = make_run(epochs=30, precision=precision)
    folder = tmp_path / "run"
    script = SCRIPT.format(tests=str(ROOT / "tests"), precision=precision, folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    for delay in delays:
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.startswith("Test set"):  # an epoch has ended: it is about to be saved
                time.sleep(delay)
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == len(delays)
    resumed_model, resumed = make_run(epochs=30, precision=precision, checkpoint=folder, resume="auto")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert_equal_weights(verified.load_verified(folder / "last.pt"), model.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",         "best.pt", "epoch-0029.pt", "epoch-0030.pt", "history.json", "last.pt",
    ]  # fmt: skip


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


def test_a_finished_run_returns_its_history_and_weights(tmp_path):
    model, history = make_run(epochs=3, checkpoint=tmp_path)
    again_model, again = make_run(epochs=3, checkpoint=tmp_path, resume="auto")
    assert again.rows == history.rows
    assert_equal_weights(again_model.state_dict(), model.state_dict())


def test_epochs_may_grow(tmp_path):
    model, history = make_run(epochs=5)
    make_run(epochs=2, checkpoint=tmp_path)
    grown_model, grown = make_run(epochs=5, checkpoint=tmp_path, resume=True)
    assert without_time(grown) == without_time(history) and grown.settings["epochs"] == 5
    assert_equal_weights(grown_model.state_dict(), model.state_dict())


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


class Temperature(nn.Module):
    """Cross entropy of logits that are divided by a number which is learnt."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits / self.scale, labels)


def test_a_loss_whose_parameters_are_not_trained_is_warned_of(tiny_net):
    samples = DataLoader(random_batches(13), batch_size=8)
    with pytest.warns(UserWarning, match="the loss has parameters that are not in the optimizer and stay as they are"):
        engine.fit(tiny_net, samples, samples, epochs=1, criterion=Temperature(), **QUIET)


def test_a_loss_that_learns_is_part_of_the_run(tmp_path):
    def learn(epochs, **options):
        seed_everything(11)
        model, loss = TinyNet(), Temperature()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05, momentum=0.9)
        loader = DataLoader(random_batches(22), batch_size=8, generator=torch.Generator().manual_seed(2))
        options = {"optimizer": optimizer, "criterion": loss, **QUIET, **options}
        with contextlib.suppress(ZeroDivisionError):
            engine.fit(model, loader, loader, epochs=epochs, **options)
        return [*model.state_dict().values(), loss.scale.detach()]

    whole = learn(4)
    learn(2, checkpoint=tmp_path)
    assert whole[-1] != 2 and all(map(torch.equal, learn(4, checkpoint=tmp_path, resume=True), whole))
    assert learn(4, log=lambda line: 0 / (not line.startswith("Test")))[-1] == 2  # as before the epoch that failed


@pytest.mark.filterwarnings("ignore:the run was trained in bfloat16")
def test_the_recorded_precision_is_taken_up_again(tmp_path):
    make_run(epochs=1, checkpoint=tmp_path, precision="bfloat16")
    _, history = make_run(epochs=2, checkpoint=tmp_path, precision="auto", resume=True)
    assert history.settings["precision"] == "bfloat16"


def test_a_precision_that_this_machine_emulates_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.runtime._cpu_computes_bfloat16", lambda: False)
    make_run(epochs=1, checkpoint=tmp_path, precision="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_run(epochs=1, checkpoint=tmp_path, precision="auto", resume=True)
        make_run(epochs=2, checkpoint=tmp_path, precision="bfloat16", resume=True)
    with pytest.warns(UserWarning, match="trained in bfloat16, which this machine has no instructions for"):
        make_run(epochs=3, checkpoint=tmp_path, precision="auto", resume=True)


@pytest.mark.filterwarnings("ignore:the run was trained in bfloat16")
def test_a_finished_run_of_a_gpu_is_loaded_where_its_precision_is_missing(tmp_path):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    state = verified.load_verified(tmp_path / "epoch-0001.pt")
    state["history"]["settings"]["precision"] = "float16"
    state["scaler"] = torch.amp.GradScaler("cpu").state_dict()
    verified.save_verified(tmp_path / "epoch-0001.pt", state)
    for precision in ("auto", "bfloat16"):
        again, loaded = make_run(epochs=1, checkpoint=tmp_path, precision=precision, resume=True)
        assert (loaded.rows, loaded.settings["precision"]) == (history.rows, "float16")
        assert_equal_weights(again.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="cannot resume: the run was trained in float16; resume it on a CUDA device"):
        make_run(epochs=2, checkpoint=tmp_path, precision="auto", resume=True)
    with pytest.raises(ValueError, match="precision was 'float16' and is now 'float32'"):
        make_run(epochs=2, checkpoint=tmp_path, precision="float32", resume=True)


def test_a_finished_run_is_loaded_in_float16_though_it_left_no_scale(tmp_path, monkeypatch):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    monkeypatch.setattr(engine, "pick_precision", lambda *_: torch.float16)  # as precision="float16" on CUDA
    again, loaded = make_run(epochs=1, checkpoint=tmp_path, resume=True)
    assert loaded.rows == history.rows
    assert_equal_weights(again.state_dict(), model.state_dict())


def test_a_finished_run_of_several_processes_or_compiled_is_loaded_by_one_that_is_not(tmp_path, monkeypatch):
    model, history = make_run(epochs=1, checkpoint=tmp_path)
    path = tmp_path / "epoch-0001.pt"
    state = verified.load_verified(path)
    state["history"]["settings"].update(processes=2, compile=True)
    state["rng"] = 2 * state["rng"]
    verified.save_verified(path, state)
    with pytest.raises(ValueError, match="cannot resume: compile was True and is now False"):
        make_run(epochs=2, checkpoint=tmp_path, resume=True)
    again, loaded = make_run(epochs=1, checkpoint=tmp_path, resume=True)
    assert (loaded.rows, loaded.settings["processes"]) == (history.rows, 2)
    assert_equal_weights(again.state_dict(), model.state_dict())

    monkeypatch.setattr(processes, "rank", lambda: 2)  # the third, of which the run has left no random state
    third = Restless(TinyNet())
    RunState((), model=third).restore({**state, "generators": []})
    assert_equal_weights(third.state_dict(), model.state_dict())


def test_any_flipped_bit_and_any_truncation_is_noticed(tmp_path):
    path = tmp_path / "state.pt"
    verified.save_verified(path, {"weight": torch.randn(50), "epoch": 3})
    content = path.read_bytes()
    rng = random.Random(0)
    damaged = [content[:length] for length in (0, 1, 70, len(content) // 2, len(content) - 1)]
    damaged += [content[:-64], content + b"x"]
    for position in [*rng.sample(range(len(content)), 300), len(content) - 1, len(content) - 70]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    accepted = 0
    for version in damaged:
        path.write_bytes(version)
        with pytest.raises(verified.DamagedFileError, match="is damaged or was not saved by this package"):
            verified.load_verified(path)
        try:
            torch.load(io.BytesIO(version), weights_only=True)
            accepted += 1
        except Exception:
            pass
    assert accepted > 50  # torch.load alone would have taken these
    path.write_bytes(content)
    assert verified.load_verified(path)["epoch"] == 3


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


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    verified.save_verified(path, {"epoch": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verified.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        verified.save_verified(path, {"epoch": 2})
    assert verified.load_verified(path) == {"epoch": 1} and [item.name for item in tmp_path.iterdir()] == ["state.pt"]


def test_only_tensors_and_plain_values_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"state\.pt would hold more than tensors and plain values: .*Fraction"):
        from fractions import Fraction

        verified.save_verified(tmp_path / "state.pt", {"rate": Fraction(1, 3)})
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(ValueError, match="which is 'best' or 'last', not 'first'"):
        disk.load_weights(TinyNet(), tmp_path, "first")
    verified.save_verified(tmp_path / "best.pt", TinyNet(5).state_dict())
    with pytest.raises(ValueError, match=r"does not fit this TinyNet: 'fc\.weight' is \(5, 6\) in the file"):
        disk.load_weights(TinyNet(4), tmp_path)
    model = TinyNet(5)
    assert disk.load_weights(model, tmp_path) is model
