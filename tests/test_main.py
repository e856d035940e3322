"""The loop, against plain loops and hand calculations."""

import copy
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyNet, random_batches
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils.averaging import MovingAverage
from eva_utils.utils.data import load_data
from eva_utils.utils.runtime import seed_everything

QUIET = {"log": None, "device": "cpu", "precision": "float32"}


def new_loaders():
    return (
        DataLoader(random_batches(22), batch_size=8, shuffle=True),
        DataLoader(random_batches(13, seed=4), batch_size=8),
    )


def plain_loop(model, loaders, epochs, optimizer, step_batch=None, step_epoch=None):
    """A loop as a textbook has it; returns the rows it would publish."""
    rows = []
    for _ in range(epochs):
        model.train()
        loss_sum = correct = count = 0
        for x, y in loaders[0]:
            optimizer.zero_grad()
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            if step_batch:
                step_batch()
            loss_sum += loss.item() * len(y)
            correct += (logits.argmax(1) == y).sum().item()
            count += len(y)
        model.eval()
        with torch.no_grad():
            logits, targets = zip(*((model(x), y) for x, y in loaders[1]), strict=True)
        logits, targets = torch.cat(logits), torch.cat(targets)
        test_loss = nn.functional.cross_entropy(logits, targets).item()
        accuracy = 100 * (logits.argmax(1) == targets).sum().item() / len(targets)
        rows.append((loss_sum / count, 100 * correct / count, test_loss, accuracy))
        if step_epoch:
            step_epoch(test_loss)
    return rows


def assert_same_weights(first, second):
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def assert_same_rows(history, rows):
    for row, expected in zip(history.rows, rows, strict=True):
        found = (row["train_loss"], row["train_accuracy"], row["test_loss"], row["test_accuracy"])
        assert found == pytest.approx(expected, rel=1e-6)


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


SCHEDULERS = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=0.5),
    "plateau_max": lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max", patience=0, factor=0.5),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, epochs=5, steps_per_epoch=3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "multi_step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
}
PER_BATCH = {"one_cycle", "cyclic"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_each_kind_follows_a_plain_loop(name, tiny_net):
    ours, plain = copy.deepcopy(tiny_net), tiny_net
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (ours, plain)]
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in optimizers]
    seed_everything(1)
    history = engine.fit(ours, *new_loaders(), epochs=5, optimizer=optimizers[0], scheduler=schedulers[0], **QUIET)
    seed_everything(1)
    steps = {}
    if name in PER_BATCH:
        steps["step_batch"] = schedulers[1].step
    elif name == "plateau_max":
        accuracies = iter([row["test_accuracy"] for row in history.rows])
        steps["step_epoch"] = lambda loss: schedulers[1].step(next(accuracies))
    else:
        steps["step_epoch"] = (
            (lambda loss: schedulers[1].step(loss)) if name == "plateau" else lambda _: schedulers[1].step()
        )
    assert_same_rows(history, plain_loop(plain, new_loaders(), 5, optimizers[1], **steps))
    assert_same_weights(ours, plain)
    rates = [row["lr"] for row in history.rows]
    assert (len(set(rates)) == 1) == (name == "constant")
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]


def test_warmup_rises_by_batch_and_hands_over_to_the_scheduler(tiny_net):
    ours, plain = copy.deepcopy(tiny_net), tiny_net
    optimizers = [
        torch.optim.SGD(
            [{"params": [*model.conv.parameters()]}, {"params": [*model.fc.parameters()], "lr": 0.02}], lr=0.06
        )
        for model in (ours, plain)
    ]
    scheduler = SCHEDULERS["step"](optimizers[0])
    seed_everything(1)
    history = engine.fit(
        ours, *new_loaders(), epochs=5, optimizer=optimizers[0], scheduler=scheduler, warmup=2, **QUIET
    )
    # Three batches an epoch: rates of 1/6 to 6/6 of the full one, then two epochs of it, then half.
    shares = iter([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, *[1] * 6, *[0.5] * 3, 0])

    def set_rates():
        share = next(shares)
        for group, rate in zip(optimizers[1].param_groups, (0.06, 0.02), strict=True):
            group["lr"] = share * rate

    seed_everything(1)
    set_rates()
    assert_same_rows(history, plain_loop(plain, new_loaders(), 5, optimizers[1], step_batch=set_rates))
    assert_same_weights(ours, plain)
    assert [row["lr"] for row in history.rows] == [0.03, 0.06, 0.06, 0.06, 0.03]
    assert history.settings["warmup"] == 2


def test_a_loader_that_ends_early_is_warmed_up_to_the_full_rate(tiny_net):
    class Long(list):
        def __len__(self):
            return 9

    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.01)
    history = engine.fit(
        tiny_net, Long(new_loaders()[1]), new_loaders()[1], epochs=2, optimizer=optimizer, warmup=1, **QUIET
    )
    assert [row["lr"] for row in history.rows] == pytest.approx([0.01 * 2 / 9, 0.01])


def test_a_plateau_sees_nothing_of_the_warmup(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05)
    scheduler = SCHEDULERS["plateau"](optimizer)
    history = engine.fit(
        tiny_net, *new_loaders(), epochs=3, optimizer=optimizer, scheduler=scheduler, warmup=2, **QUIET
    )
    assert scheduler.last_epoch == 1 and scheduler.best == history.rows[-1]["test_loss"]


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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ema": 1}, "ema is a number from 0 and below 1, not 1"),
        ({"ema": "0.9"}, "ema is a number from 0 and below 1, not '0.9'"),
        ({"clip": 0}, "clip is a number above 0, not 0"),
    ],
)
def test_averaging_misuse_is_refused(option, message, tiny_net):
    before = copy.deepcopy(tiny_net)
    with pytest.raises(ValueError, match=message):
        engine.fit(tiny_net, *new_loaders(), epochs=1, **option, **QUIET)
    assert_same_weights(tiny_net, before)


def test_warmup_misuse_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05)
    cycle = SCHEDULERS["one_cycle"](optimizer)
    with pytest.raises(ValueError, match="OneCycleLR sets the rate of every batch; leave warmup out"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, optimizer=optimizer, scheduler=cycle, warmup=1, **QUIET)
    with pytest.raises(ValueError, match="warmup=5 leaves none of epochs=5 at the full rate; make it shorter"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, warmup=5, **QUIET)
    with pytest.raises(ValueError, match=r"warmup is a whole number from 0 up, not 1\.5"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, warmup=1.5, **QUIET)


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


@pytest.mark.filterwarnings("ignore:the model has the weights")
def test_optimizer_and_scheduler_go_back_with_the_weights(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=5, steps_per_epoch=3)
    model = Poison(tiny_net, 5, KeyboardInterrupt())
    options = {"optimizer": optimizer, "scheduler": scheduler, **QUIET}
    history = engine.fit(model, *new_loaders(), epochs=5, **options)
    assert len(history) == 1 and scheduler.last_epoch == 3
    assert {int(state["momentum_buffer"].isfinite().all()) for state in optimizer.state.values()} == {1}
    assert len(engine.fit(model, *new_loaders(), epochs=4, **options)) == 4


class Poison(nn.Module):
    """Passes images through until a chosen call, whose output is made NaN or is an interruption."""

    def __init__(self, net, call, what):
        super().__init__()
        self.net, self.call, self.what, self.calls = net, call, what, 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == self.call:
                if isinstance(self.what, BaseException):
                    raise self.what
                return self.net(x) * self.what
        return self.net(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value, tiny_net):
    undisturbed = copy.deepcopy(tiny_net)
    model = Poison(tiny_net, 8, value)  # the second batch of the third epoch of three batches
    seed_everything(1)
    with pytest.raises(FloatingPointError, match="epoch 3: the loss is NaN or infinite at batch 1; lower the"):
        engine.fit(model, *new_loaders(), epochs=5, **QUIET)
    seed_everything(1)
    engine.fit(undisturbed, *new_loaders(), epochs=2, **QUIET)
    assert_same_weights(model.net, undisturbed)


def test_ctrl_c_returns_the_finished_epochs(tiny_net):
    undisturbed = copy.deepcopy(tiny_net)
    model, lines = Poison(tiny_net, 5, KeyboardInterrupt()), []
    seed_everything(1)
    history = engine.fit(model, *new_loaders(), epochs=5, **{**QUIET, "log": lines.append})
    assert len(history) == 1 and lines[-1].startswith("Stopped in epoch 2: weights and history are those of the 1 ")
    seed_everything(1)
    engine.fit(undisturbed, *new_loaders(), epochs=1, **QUIET)
    assert_same_weights(model.net, undisturbed)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert engine.test(model, new_loaders()[1], precision="float32").loss == history.rows[-1]["test_loss"]


@pytest.mark.parametrize(
    ("call", "kind", "ema"), [(5, RuntimeError, None), (5, RuntimeError, 0.9), (4, ValueError, None)]
)
def test_an_error_after_which_the_device_is_lost_is_not_hidden_by_another(call, kind, ema, tiny_net, monkeypatch):
    def unreadable(*_):
        raise RuntimeError("CUDA error: nothing can be read")

    monkeypatch.setattr(nn.Module, "load_state_dict", unreadable)
    monkeypatch.setattr(engine, "note_trained", unreadable)
    model = Poison(tiny_net, call, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(kind, match="device-side assert") as raised:
        engine.fit(model, *new_loaders(), epochs=5, ema=ema, **QUIET)
    assert len(raised.value.history) == 1


@pytest.mark.filterwarnings("error:Detected call of")
def test_first_gradients_that_overflow_are_no_matter_of_the_schedule(tiny_net, monkeypatch):
    """A step that the scaler leaves out makes torch warn of the order of two calls."""
    monkeypatch.setattr(engine, "pick_precision", lambda *_: torch.float16)
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
    before, scaler = copy.deepcopy(tiny_net.state_dict()), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    options = {"scheduler": scheduler, "scaler": scaler, "log": None, "device": "cpu"}
    engine.train(tiny_net, new_loaders()[1], optimizer, **options)
    assert scaler.get_scale() < 2.0**127 and scheduler.last_epoch == 2
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items() if "norm" not in name)


def test_a_model_that_raises_keeps_the_finished_epochs(tiny_net, tmp_path):
    model = Poison(tiny_net, 5, RuntimeError("out of cheese"))
    with pytest.raises(RuntimeError, match="out of cheese"):
        engine.fit(model, *new_loaders(), epochs=5, checkpoint=tmp_path / "run", **QUIET)
    assert (tmp_path / "run" / "epoch-0001.pt").exists()


@pytest.mark.parametrize(
    "model, optimizer, error, message",
    [
        (TinyNet, None, TypeError, "model is a torch.nn.Module, not type; pass the model itself"),
        (TinyNet(), "sgd", TypeError, r"optimizer is a torch optimizer such as SGD.*, not 'sgd'"),
        (TinyNet(), torch.optim.SGD(TinyNet().parameters()), ValueError, "the optimizer holds no parameter of this"),
        (TinyNet().requires_grad_(False), None, ValueError, "the model has no trainable parameter"),
    ],
)
def test_train_refuses_what_would_not_learn(model, optimizer, error, message):
    class Unread(list):
        def __iter__(self):
            raise AssertionError("a batch was read")

    with pytest.raises(error, match=message):
        engine.train(model, Unread([1]), optimizer, log=None)
    with torch.no_grad(), pytest.raises(ValueError, match="gradients are switched off here"):
        engine.train(TinyNet(), Unread([1]), optimizer, log=None)


def test_test_refuses_what_is_no_model(loaders):
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not str; pass the model itself"):
        engine.test("resnet18", loaders[1])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"epochs": 0}, ValueError, "epochs is a whole number from 1 up, not 0"),
        ({"model": "resnet18"}, TypeError, "model is a torch.nn.Module, not str"),
        ({"model": nn.ReLU()}, ValueError, "the model has no trainable parameter"),
        (
            {"train_loader": iter([1])},
            TypeError,
            r"train_loader \(list_iterator\) can be passed over only once",
        ),
        ({"test_loader": []}, ValueError, "test_loader is empty"),
        ({"optimizer": torch.optim.SGD(TinyNet().parameters())}, ValueError, "holds no parameter of this model"),
        ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "not reduction='sum'"),
        ({"precision": "bfloat61"}, ValueError, r"unknown precision 'bfloat61'.*did you mean 'bfloat16'\?"),
        ({"precision": "float16"}, ValueError, "float16 needs a CUDA device and this is 'cpu'"),
        ({"resume": True}, ValueError, "resume needs the folder of the run: give checkpoint= as well"),
        ({"seed": -1}, ValueError, "a seed is a whole number from 0"),
    ],
)
def test_misuse_is_refused_before_any_work(change, error, message, tiny_net, loaders):
    arguments = {
        "model": tiny_net,
        "train_loader": loaders[0],
        "test_loader": loaders[1],
        "epochs": 1,
        **QUIET,
        **change,
    }
    before = copy.deepcopy(tiny_net.state_dict())
    positional = [arguments.pop(name) for name in ("model", "train_loader", "test_loader")]
    with pytest.raises(error, match=message):
        engine.fit(*positional, **arguments)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())


def test_a_scheduler_that_does_not_fit_is_refused(tiny_net, loaders):
    optimizer, other = (torch.optim.SGD(tiny_net.parameters(), lr=0.1) for _ in range(2))
    arguments = {"epochs": 4, "optimizer": optimizer, **QUIET}
    with pytest.raises(ValueError, match="the scheduler belongs to another optimizer"):
        engine.fit(tiny_net, *loaders, scheduler=lr_scheduler.StepLR(other, 1), **arguments)
    short = lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=3, steps_per_epoch=3)
    with pytest.raises(ValueError, match="built for 9 steps and the run takes 4 epochs of 3 batches"):
        engine.fit(tiny_net, *loaders, scheduler=short, **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_remembers_the_bad_batch_without_waiting(tiny_net):
    model = Poison(tiny_net, 2, float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1: the loss is NaN or infinite at batch 1"):
        engine.fit(model, *new_loaders(), epochs=1, log=None, device="cuda")


def test_the_meter_is_read_once_an_epoch(tiny_net, monkeypatch):
    reads = []
    score = engine.Meter.score
    monkeypatch.setattr(engine.Meter, "score", lambda meter: reads.append(meter) or score(meter))
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.01)
    for count in (16, 160):
        reads.clear()
        engine.train(tiny_net, DataLoader(random_batches(count), batch_size=8), optimizer, **QUIET)
        assert len(reads) == 1


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
        waits.append(sum("synchronizing" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("mode", [True, "default"])
def test_a_compiled_run_is_given_back_as_it_was(mode, tiny_net, monkeypatch):
    """With the compiler that only traces, which needs no C++ compiler."""
    compile_plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_plain(model, backend="eager"))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: _compile(self, seen, options))
    seen = []
    plain = copy.deepcopy(tiny_net)
    seed_everything(1)
    expected = engine.fit(plain, *new_loaders(), epochs=2, **QUIET)
    seed_everything(1)
    history = engine.fit(tiny_net, *new_loaders(), epochs=2, compile=mode, **QUIET)
    assert seen == [{"mode": None if mode is True else mode}] and history.settings["compile"] == mode
    assert tiny_net._compiled_call_impl is None
    assert_same_weights(tiny_net, plain)
    assert [row["test_loss"] for row in history.rows] == pytest.approx([row["test_loss"] for row in expected.rows])


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_is_recorded_by_its_own_name(wrap, tiny_net):
    assert engine.fit(wrap(tiny_net), *new_loaders(), epochs=1, **QUIET).settings["model"] == "TinyNet"


def test_an_output_that_only_writes_is_logged_to(tiny_net, monkeypatch):
    lines = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=lines.append, flush=lambda: None))
    engine.fit(tiny_net, *new_loaders(), epochs=1, device="cpu")
    assert "EPOCH: 1" in lines and any("100%" in line for line in lines)


def _compile(model, seen, options):
    seen.append(options)
    model._compiled_call_impl = torch.compile(model._call_impl)


def test_compile_misuse_is_refused(tiny_net, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown compile mode 'fast': choose one of default, .*"):
        engine.fit(tiny_net, *new_loaders(), epochs=1, compile="fast", **QUIET)

    def no_compiler(function, **options):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    message = r"compile=True does not work here \(No working C\+\+ compiler found\); install a C\+\+ compiler"
    with pytest.raises(ValueError, match=message):
        engine.fit(tiny_net, *new_loaders(), epochs=1, compile=True, **QUIET)


def test_weights_are_channels_last_in_half_precision_alone():
    for precision, last in (("float32", False), ("bfloat16", True)):
        model = TinyNet()
        engine.fit(model, *new_loaders(), epochs=1, log=None, device="cpu", precision=precision)
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) == last


def test_what_train_cannot_step_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match="step ReduceLROnPlateau yourself, with the loss that test returns"):
        engine.train(tiny_net, new_loaders()[0], optimizer, scheduler=plateau, log=None)
    with pytest.raises(TypeError, match="LBFGS runs the model several times a step"):
        engine.train(tiny_net, new_loaders()[0], torch.optim.LBFGS(tiny_net.parameters()), log=None)
