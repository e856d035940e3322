"""Schedules that do not fit a run are refused, or warned of."""

import copy
import math
import re
import warnings

import pytest
import torch

from conftest import IMAGES, LABELS, TinyNet, fit
from eva_utils.utils import schedule_checks
from eva_utils.utils.lr_finder import lr_find
from eva_utils.utils.optim import one_cycle


def test_a_one_cycle_schedule_that_is_used_up_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
    options = {"optimizer": optimizer, "scheduler": scheduler, "epochs": 4}
    fit(tiny_net, [(IMAGES, LABELS)], **options)
    with pytest.raises(
        ValueError, match="OneCycleLR has 0 of its 4 steps left and the run takes 4; build optimizer and"
    ):
        fit(tiny_net, [(IMAGES, LABELS)], **options)


def test_the_rate_that_a_finished_one_cycle_leaves_is_refused(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    scheduler = one_cycle(optimizer, 2, 4, 0.1, 0.01, peak_epoch=1)
    fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, scheduler=scheduler, epochs=2)
    assert optimizer.param_groups[0]["lr"] < 0  # torch goes on along the line
    with pytest.raises(
        ValueError, match=r"the optimizer's learning rate is -0\.0.*; build optimizer and scheduler anew"
    ):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)


def test_a_one_cycle_schedule_inside_another_is_refused_where_it_would_not_end(tiny_net):
    optimizer, loader = torch.optim.SGD(tiny_net.parameters(), lr=0.1, momentum=0.9), [(IMAGES, LABELS)] * 3

    def chained(steps):
        parts = [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]
        parts = [torch.optim.lr_scheduler.ChainedScheduler(parts)]
        return torch.optim.lr_scheduler.ChainedScheduler(parts)

    with pytest.raises(
        ValueError, match=r"a OneCycleLR of 6 steps inside ChainedScheduler would be stepped .* 2 times"
    ):
        fit(tiny_net, loader, optimizer=optimizer, scheduler=chained(6), epochs=2)
    assert len(fit(tiny_net, loader, optimizer=optimizer, scheduler=chained(2), epochs=2)) == 2


def test_a_one_cycle_schedule_that_was_not_passed_is_noticed(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1, momentum=0.9)
    one_cycle(optimizer, 2, 4, 0.1, 0.01, peak_epoch=1)
    with pytest.raises(
        ValueError, match=r"a OneCycleLR was built on this optimizer and not passed, .* pass scheduler="
    ):
        fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, epochs=2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert len(fit(tiny_net, [(IMAGES, LABELS)] * 4, optimizer=optimizer, scheduler=plateau, epochs=2)) == 2


def test_the_rate_of_a_schedule_that_was_not_passed_is_warned_of(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5)
    with pytest.warns(UserWarning, match="rate is 0.001, and a schedule that is not passed was built on it at 0.1;"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the optimizer's rate is")
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=rising)


def test_a_one_cycle_schedule_that_does_not_end_is_warned_of_and_can_go_on(tmp_path):
    def run(model, epochs, **options):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
        fit(model, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=scheduler, epochs=epochs, **options)
        return model.state_dict()

    start = TinyNet()
    with pytest.warns(UserWarning, match="has 9 steps left and the run takes 4, so the rate does not come down in it"):
        run(copy.deepcopy(start), 4, seed=1, checkpoint=tmp_path)
    resumed = run(copy.deepcopy(start), 9, resume=True, checkpoint=tmp_path)
    whole = run(copy.deepcopy(start), 9, seed=1)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("length", "warmup", "message"),
    [
        (50, 0, r"T_max=50\) steps once an epoch, so the rate hardly falls.*it is T_max=5"),
        (15, 0, r"T_max=15\) steps once an epoch, so the rate hardly falls.*it is T_max=5"),  # 5 epochs of 3 batches
        (2, 0, r"T_max=2\) .* rises again after 2 of the 5 epochs.*it is T_max=5"),
        (5, 0, None),
        (4, 0, None),
        (3, 2, None),
        (10, 0, None),  # more epochs may follow
    ],
)
def test_a_cosine_of_another_length_is_warned_of(length, warmup, message, tiny_net, recwarn):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
    schedule_checks.warn_of_schedule(cosine, 5, warmup, 3)
    assert len(recwarn) == (message is not None)
    assert message is None or re.search(message, str(recwarn[0].message))


@pytest.mark.parametrize(
    ("patience", "cooldown", "epochs", "warmup", "cuts"),
    [(3, 0, 10, 0, 2), (4, 0, 11, 0, 1), (4, 0, 12, 0, 2), (4, 1, 12, 0, 1), (4, 0, 14, 3, 1), (30, 0, 12, 0, 0)],
)
def test_a_plateau_that_can_cut_once_at_most_is_warned_of(patience, cooldown, epochs, warmup, cuts, tiny_net, recwarn):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience, cooldown=cooldown)
    schedule_checks.warn_of_schedule(plateau, epochs, warmup, 3)
    for _ in range(epochs - warmup - 1):  # a cut after the last epoch changes nothing
        plateau.step(1.0)
    assert round(-math.log10(optimizer.param_groups[0]["lr"])) == cuts
    assert len(recwarn) == (cuts < 2)
    assert cuts > 1 or f"bears {patience} epochs" in str(recwarn[0].message)


def test_short_runs_with_a_plateau_are_tried_without_a_word(tiny_net, recwarn):
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(tiny_net.parameters(), lr=1.0))
    schedule_checks.warn_of_schedule(plateau, 9, 0, 3)
    assert not recwarn


def test_a_rate_of_0_is_refused_unless_the_schedule_raises_it(tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.0)
    for plateau in (None, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)):
        with pytest.raises(ValueError, match="learning rate is 0, so nothing would be learnt"):
            fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer, scheduler=plateau)
    assert lr_find(tiny_net, [(IMAGES, LABELS)] * 16, optimizer, device="cpu").rates  # which sets rates of its own
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch)
    assert optimizer.param_groups[0]["lr"] == 0
    assert len(fit(tiny_net, [(IMAGES, LABELS)], epochs=2, optimizer=optimizer, scheduler=rising)) == 2


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(rate, tiny_net):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=rate)
    with pytest.raises(ValueError, match=rf"the optimizer's learning rates are \[{rate}\]; give finite ones"):
        fit(tiny_net, [(IMAGES, LABELS)], optimizer=optimizer)
