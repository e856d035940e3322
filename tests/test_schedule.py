"""Schedulers and warmup, against plain loops."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler

from conftest import QUIET
from eva_utils import main as engine
from eva_utils.utils.runtime import seed_everything
from plain import PER_BATCH, SCHEDULERS, assert_same_rows, assert_same_weights, new_loaders, plain_loop


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
            (lambda loss: schedulers[1].step(loss)) if name.startswith("plateau") else lambda _: schedulers[1].step()
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


def test_warmup_misuse_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05)
    cycle = SCHEDULERS["one_cycle"](optimizer)
    with pytest.raises(ValueError, match="OneCycleLR sets the rate of every batch; leave warmup out"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, optimizer=optimizer, scheduler=cycle, warmup=1, **QUIET)
    with pytest.raises(ValueError, match="warmup=5 leaves none of epochs=5 at the full rate; make it shorter"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, warmup=5, **QUIET)
    with pytest.raises(ValueError, match=r"warmup is a whole number from 0 up, not 1\.5"):
        engine.fit(tiny_net, *new_loaders(), epochs=5, warmup=1.5, **QUIET)


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


def test_a_scheduler_that_does_not_fit_is_refused(tiny_net, loaders):
    optimizer, other = (torch.optim.SGD(tiny_net.parameters(), lr=0.1) for _ in range(2))
    arguments = {"epochs": 4, "optimizer": optimizer, **QUIET}
    with pytest.raises(ValueError, match="the scheduler belongs to another optimizer"):
        engine.fit(tiny_net, *loaders, scheduler=lr_scheduler.StepLR(other, 1), **arguments)
    short = lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=3, steps_per_epoch=3)
    with pytest.raises(ValueError, match="built for 9 steps and the run takes 4 epochs of 3 batches"):
        engine.fit(tiny_net, *loaders, scheduler=short, **arguments)
