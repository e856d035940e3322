"""The loop, against plain loops and hand calculations."""

import copy
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from conftest import IMAGES, LABELS, QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils.averaging import MovingAverage
from eva_utils.utils.data import load_data
from eva_utils.utils.runtime import seed_everything
from plain import SCHEDULERS, assert_same_rows, assert_same_weights, new_loaders, plain_loop


def test_defaults_follow_a_plain_loop_bit_for_bit(tiny_net):
    ours, plain = copy.deepcopy(tiny_net), tiny_net
    seed_everything(1)
    history = engine.fit(ours, *new_loaders(), epochs=7, **QUIET)
    seed_everything(1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    rows = plain_loop(plain, new_loaders(), 7, optimizer, step_epoch=scheduler.step)
    assert_same_weights(ours, plain)
    assert_same_rows(history, rows)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4, 5, 6, 7]


class Counts(nn.Module):
    """Counts its batches in a buffer."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def test_workers_that_stay_and_a_counter_change_nothing_of_a_plain_loop(tiny_net):
    def loaders():
        workers = {"num_workers": 1, "persistent_workers": True}
        train = DataLoader(random_batches(22), batch_size=8, shuffle=True)
        return train, DataLoader(random_batches(13, seed=4), batch_size=8, **workers)

    ours, plain = Counts(copy.deepcopy(tiny_net)), Counts(tiny_net)
    seed_everything(1)
    engine.fit(ours, *loaders(), epochs=3, **QUIET)
    seed_everything(1)
    plain_loop(plain, loaders(), 3, torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9))
    assert_same_weights(ours, plain)
    assert ours.calls == plain.calls == 15


def test_the_small_network_follows_a_plain_loop_bit_for_bit():
    data = load_data("shapes", limit=48, batch_size=20, recipe="eva6_s8")
    ours = create_model("small_resnet")
    plain = copy.deepcopy(ours)
    engine.fit(ours, data.train, data.test, epochs=2, **QUIET)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    for epoch in (1, 2):
        data.train.set_epoch(epoch)
        for x, y in data.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    assert_same_weights(ours, plain)


def test_clipping_and_averaging_follow_a_hand_made_loop(tiny_net):
    model, (batches, tested) = copy.deepcopy(tiny_net), new_loaders()
    batches, optimizer = list(batches), torch.optim.SGD(tiny_net.parameters(), lr=0.5)
    given = {"optimizer": optimizer, "scheduler": SCHEDULERS["constant"](optimizer), "ema": 0.6, "clip": 0.05}
    history = engine.fit(tiny_net, batches, tested, epochs=2, seed=7, **given, **QUIET)

    seed_everything(7)  # of the dropout
    parameters, average, norms, losses = list(model.parameters()), None, [], []
    for epoch in range(2):
        model.train()
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), parameters)
            norms.append(float(sum((gradient**2).sum() for gradient in gradients).sqrt()))
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.5 * gradient * min(1, 0.05 / norms[-1])
            values, decay = (
                [value.double() for value in model.state_dict().values()],
                min(0.6, (1 + step) / (10 + step)),
            )
            average = average or values
            average = [decay * old + (1 - decay) * new for old, new in zip(average, values, strict=True)]
        averaged = copy.deepcopy(model)
        averaged.load_state_dict(dict(zip(model.state_dict(), average, strict=True)))
        losses.append(engine.test(averaged, tested, device="cpu", precision="float32").loss)
    assert min(norms) > 0.05  # clipping took part
    assert [row["test_loss"] for row in history.rows] == pytest.approx(losses, rel=1e-4)
    for (name, ours), theirs in zip(tiny_net.state_dict().items(), averaged.state_dict().values(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    assert (history.settings["ema"], history.settings["clip"]) == (0.6, 0.05)


def test_scores_are_means_over_samples_whatever_the_batches(tiny_net):
    samples = random_batches(23)
    whole = nn.functional.cross_entropy(tiny_net.eval()(samples.tensors[0]), samples.tensors[1]).item()
    for size in (1, 5, 22, 23):
        score = engine.test(tiny_net, DataLoader(samples, batch_size=size), precision="float32")
        assert score.loss == pytest.approx(whole, rel=1e-6)
        correct = int((tiny_net(samples.tensors[0]).argmax(1) == samples.tensors[1]).sum())
        assert (score.correct, score.samples, score.accuracy) == (correct, 23, 100 * correct / 23)


def test_the_log_is_the_assignments(tiny_net, loaders):
    lines = []
    engine.fit(tiny_net, *loaders, epochs=2, **{**QUIET, "log": lines.append})
    assert [lines[0], lines[3]] == ["EPOCH: 1", "EPOCH: 2"] and len(lines) == 6
    bar = r"Loss=\d\.\d{4} Batch_id=2 LR=0\.01000 Accuracy=\d+\.\d\d: 100%\|█+\| 3/3 \[\d\d:\d\d<00:00, .*\]"
    assert re.fullmatch(bar, lines[1])
    assert re.fullmatch(r"Test set: Average loss: \d\.\d{4}, Accuracy: \d+/13 \(\d+\.\d\d%\)", lines[2])


@pytest.mark.filterwarnings("ignore:the model has the weights")
def test_silence(tiny_net, loaders, capsys):
    engine.fit(tiny_net, *loaders, epochs=1, **QUIET)
    engine.train(tiny_net, loaders[0], torch.optim.SGD(tiny_net.parameters(), lr=0.1), log=None)
    engine.test(tiny_net, loaders[1])
    assert capsys.readouterr() == ("", "")
    lines = []
    engine.fit(tiny_net, *loaders, epochs=1, progress=False, **{**QUIET, "log": lines.append})
    assert len(lines) == 2


def test_the_bar_is_live_where_someone_watches(tiny_net, loaders, capsys, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.progress._is_watched", lambda stream: True)
    engine.fit(tiny_net, *loaders, epochs=1, device="cpu", precision="float32")
    out = capsys.readouterr().out
    assert out.startswith("EPOCH: 1\n") and "\r" in out and out.count("100%|") >= 1


def test_modes_gradients_and_frozen_parameters_are_as_before(tiny_net, loaders):
    tiny_net.train()
    tiny_net.norm.eval()
    tiny_net.conv.requires_grad_(False)
    frozen = copy.deepcopy(tiny_net.conv.state_dict())
    engine.fit(tiny_net, *loaders, epochs=1, **QUIET)
    assert [module.training for module in (tiny_net, tiny_net.conv, tiny_net.norm)] == [True, True, False]
    assert all(parameter.grad is None for parameter in tiny_net.parameters())
    assert all(torch.equal(frozen[name], value) for name, value in tiny_net.conv.state_dict().items())


def test_precision_and_settings_are_recorded(tiny_net, loaders):
    history = engine.fit(tiny_net, *loaders, epochs=1, seed=5, log=None, device="cpu", precision="bfloat16")
    settings = history.settings
    assert settings["precision"] == "bfloat16" and settings["seed"] == 5 and settings["epochs"] == 1
    assert settings["optimizer"]["class"] == "SGD" and settings["optimizer"]["group 0"]["lr"] == 0.01
    assert settings["scheduler"]["class"] == "ReduceLROnPlateau" and settings["scheduler"]["patience"] == 3
    assert settings["criterion"]["class"] == "CrossEntropyLoss"
    assert settings["parameters"] == sum(parameter.numel() for parameter in tiny_net.parameters())
    assert {parameter.dtype for parameter in tiny_net.parameters()} == {torch.float32}


class Looks(nn.Module):
    """Keeps the type and the memory layout of what reaches its convolution and of what leaves it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), set()

    def forward(self, x):
        out = self.conv(x)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self.seen.add((self.training, x.dtype, out.dtype, last))
        return self.fc(out.mean(dim=(2, 3)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_reaches_the_convolutions(precision, loaders):
    model, dtype = Looks(), getattr(torch, precision)
    engine.fit(model, *loaders, epochs=1, log=None, device="cpu", precision=precision)
    low = precision != "float32"
    assert model.seen == {(training, torch.float32, dtype, low) for training in (True, False)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_meter_is_read_once_an_epoch(tiny_net, monkeypatch):
    reads = []
    score = engine.Meter.score
    monkeypatch.setattr(engine.Meter, "score", lambda meter: reads.append(meter) or score(meter))
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.01)
    for count in (16, 160):
        reads.clear()
        engine.train(tiny_net, DataLoader(random_batches(count), batch_size=8), optimizer, **QUIET)
        assert len(reads) == 1


@pytest.mark.parametrize(("seconds", "reads"), [(0.0, 1), (0.2, 4), (0.6, 11)])
def test_a_live_bar_reads_the_meter_every_half_second_and_at_the_end(seconds, reads, tiny_net, monkeypatch, capsys):
    """Of an epoch of ten batches that take so many seconds each."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    class Timed(list):
        def __iter__(self):
            for batch in super().__iter__():
                clock.now += seconds
                yield batch

    monkeypatch.setattr("eva_utils.utils.progress.time", clock)
    monkeypatch.setattr("eva_utils.utils.progress._is_watched", lambda stream: True)
    seen, score = [], engine.Meter.score
    monkeypatch.setattr(engine.Meter, "score", lambda meter: seen.append(meter) or score(meter))
    batches = Timed(DataLoader(random_batches(40), batch_size=4))
    engine.train(tiny_net, batches, torch.optim.SGD(tiny_net.parameters(), lr=0.01), device="cpu", precision="float32")
    assert len(seen) == reads and "Batch_id=9" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_waits_do_not_grow_with_the_batches(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.cuda().parameters(), lr=0.01)
    waits = []
    for count in (16, 160):
        images, labels = (part.cuda() for part in random_batches(count).tensors)
        batches = list(zip(images.split(8), labels.split(8), strict=True))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                average = MovingAverage(tiny_net, 0.9)
                engine.train(tiny_net, batches, optimizer, log=None, device="cuda", precision="bfloat16", ema=average)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1] > 0  # torch's words are known if some were counted


def test_an_output_that_only_writes_is_logged_to(tiny_net, monkeypatch):
    lines = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=lines.append, flush=lambda: None))
    engine.fit(tiny_net, *new_loaders(), epochs=1, device="cpu")
    assert "EPOCH: 1" in lines and any("100%" in line for line in lines)


@pytest.mark.parametrize("within", ["sampler", "batch_sampler"])
def test_a_sampler_is_told_the_epoch_as_a_loader_is(within, tiny_net):
    sampler = DistributedSampler(random_batches(16), num_replicas=1, rank=0, seed=3)
    told, tell = [], sampler.set_epoch
    sampler.set_epoch = lambda epoch: (told.append(epoch), tell(epoch))
    how = {"sampler": sampler, "batch_size": 8}
    if within == "batch_sampler":
        how = {"batch_sampler": BatchSampler(sampler, 8, drop_last=False)}
    loader = DataLoader(random_batches(16), **how)
    engine.fit(tiny_net, loader, [(IMAGES, LABELS)], epochs=3, **QUIET)
    assert told == [1, 2, 3]


def test_weights_are_channels_last_in_half_precision_alone():
    for precision, last in (("float32", False), ("bfloat16", True)):
        model = TinyNet()
        engine.fit(model, *new_loaders(), epochs=1, log=None, device="cpu", precision=precision)
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == last


def global_flags():
    """How torch multiplies and convolves everywhere in this process."""
    backends = torch.backends
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "mkldnn": backends.mkldnn.enabled,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
    }


def test_a_run_changes_no_flag_of_torch(tiny_net, loaders):
    before = global_flags()
    engine.fit(tiny_net, *loaders, epochs=1, ema=0.9, clip=1.0, seed=3, **QUIET)
    assert global_flags() == before
