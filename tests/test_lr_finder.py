"""The learning-rate range test: against torch-lr-finder and by hand, leaving no trace."""

import copy
import itertools
import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, Dataset

from conftest import TinyNet, random_batches
from eva_utils.utils.data import load_data
from eva_utils.utils.lr_finder import RateCurve, _steepest, lr_find

QUIET = {"device": "cpu", "precision": "float32"}


def parts(optimizer="sgd", batch_size=4, images=88):
    torch.manual_seed(5)
    model = TinyNet()
    loader = DataLoader(
        random_batches(images), batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    kinds = {"sgd": {"momentum": 0.9}, "adam": {}}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    return model, loader, kind(model.parameters(), lr=1e-4, **kinds[optimizer])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("end", [1.0, 1e4])
def test_agrees_with_torch_lr_finder(optimizer, end):
    package = pytest.importorskip("torch_lr_finder")
    model, loader, chosen = parts(optimizer)
    twin = copy.deepcopy(model)
    optimizer = type(chosen)(twin.parameters(), **chosen.defaults)
    theirs, before = package.LRFinder(twin, optimizer, nn.CrossEntropyLoss(), device="cpu"), torch.get_rng_state()
    ours = lr_find(model, loader, chosen, start=1e-4, end=end, steps=60, **QUIET)
    torch.set_rng_state(before)
    loader.generator.manual_seed(1)
    theirs.range_test(loader, end_lr=end, num_iter=60)
    count = min(len(ours.losses), len(theirs.history["loss"]))
    assert count >= 20 and abs(len(ours.losses) - len(theirs.history["loss"])) <= 1
    assert ours.rates[:count] == pytest.approx(theirs.history["lr"][:count], rel=1e-9)
    first = theirs.history["loss"][0]  # which theirs starts from and is biased to
    expected = [
        (loss - 0.95 ** (step + 1) * first) / (1 - 0.95 ** (step + 1))
        for step, loss in enumerate(theirs.history["loss"][:count])
    ]
    assert ours.losses[:count] == pytest.approx(expected, rel=1e-5)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    _, loader, _ = parts(batch_size=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    rates, losses, suggestion = lr_find(model, loader, optimizer, end=0.1, steps=50, **QUIET)
    assert rates[0] == 1e-6 and rates[-1] == pytest.approx(0.1) and len(rates) == len(losses) == 50
    assert all(b / a == pytest.approx(1e5 ** (1 / 49)) for a, b in itertools.pairwise(rates))
    last = min(losses.index(min(losses)), 44)
    slopes = {}
    for place in range(10, last + 1):
        left, right = max(place - 1, 10), min(place + 1, last)
        slopes[rates[place]] = (losses[right] - losses[left]) / (math.log(rates[right]) - math.log(rates[left]))
    assert suggestion == min(slopes, key=slopes.get)
    shown = repr(RateCurve(rates, losses, suggestion))
    assert shown == f"RateCurve(50 rates from 1e-06 to 0.1, suggestion {suggestion:.2g})"


def test_the_curve_is_the_mean_with_weights_that_fall_by_a_twentieth_a_batch():
    """A hard first batch followed by equal losses is no fall at the rates of those."""
    model, loader, optimizer = parts()
    raw = [3.2] + [2.3] * 49
    values = iter(raw)
    curve = lr_find(model, loader, optimizer, lambda logits, _: 0 * logits.sum() + next(values), steps=50, **QUIET)
    weights = [0.95 ** np.arange(step, -1, -1) for step in range(50)]
    expected = [np.average(raw[: len(weight)], weights=weight) for weight in weights]
    assert curve.losses == pytest.approx(expected, rel=1e-6) and curve.suggestion is None


def curve(points):
    """A smooth curve of 60 losses through (place, loss)."""
    return [10 ** (-6 + step / 10) for step in range(60)], np.interp(range(60), *zip(*points, strict=True)).tolist()


def test_nothing_is_suggested_where_the_loss_rises_again_or_does_not_fall():
    steep_after = curve([(0, 2.3), (20, 2.3), (30, 1.5), (40, 3.0), (45, 1.6), (59, 4.0)])
    assert steep_after[0][20] <= _steepest(*steep_after) <= steep_after[0][30]
    assert _steepest(*curve([(0, 2.3), (59, 2.1)])) is None
    assert _steepest(*curve([(0, 2.3), (59, 9.0)])) is None


def test_a_suggestion_needs_a_fall_of_a_tenth_and_is_not_among_the_last_steps():
    clear = curve([(0, 2.3), (20, 2.3), (30, 0.88 * 2.3), (59, 0.88 * 2.3)])
    assert clear[0][20] <= _steepest(*clear) <= clear[0][30]
    assert _steepest(*curve([(0, 2.3), (20, 2.3), (30, 0.92 * 2.3), (59, 0.92 * 2.3)])) is None
    falling = curve([(0, 2.3), (40, 1.9), (54, 1.8), (59, 0.1)])
    assert _steepest(*falling) <= falling[0][40]


def finding(raw, **options):
    """A range test of these losses, whatever the model says."""
    values = itertools.chain(raw, itertools.repeat(raw[-1]))
    model, loader, optimizer = parts()
    return lr_find(model, loader, optimizer, lambda logits, _: 0 * logits.sum() + next(values), **options, **QUIET)


def test_it_takes_a_hundred_steps_from_a_millionth_to_one():
    rates = finding([2.3]).rates
    assert len(rates) == 100 and rates[0] == 1e-6 and rates[-1] == pytest.approx(1)


def test_it_ends_at_five_times_the_lowest_running_mean():
    """From 1 on, k losses of 21 make it 1 + 20 (1 - 0.95^k), which is above 5 for k = 5."""
    assert len(finding([1.0] * 20 + [21.0], steps=50).losses) == 25
    assert len(finding([1.0] * 10 + [0.0] + [1.0], steps=50).losses) == 50  # one loss is no mean


@pytest.mark.parametrize("finite", [15, 16])
def test_sixteen_steps_are_a_curve(finite):
    raw = [2.3] * finite + [math.nan]
    if finite == 16:
        assert len(finding(raw, steps=30).losses) == 16
    else:
        with pytest.raises(ValueError, match="the loss diverged after 15 steps, at a rate of"):
            finding(raw, steps=30)


@pytest.mark.parametrize("scheduled", [False, True])
def test_everything_is_as_it_was(scheduled):
    model, loader, optimizer = parts()
    scheduler = StepLR(optimizer, 2) if scheduled else None
    for images, labels in loader:  # so that there are momenta and gradients
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    if scheduled:
        scheduler.step()
    model.norm.eval()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    drawn = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), loader.generator.get_state())
    lr_find(model, loader, optimizer, steps=30, **QUIET)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    after = optimizer.state_dict()
    assert after["param_groups"] == before[1]["param_groups"]
    for index, state in before[1]["state"].items():
        assert torch.equal(after["state"][index]["momentum_buffer"], state["momentum_buffer"])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn[0]) and np.random.get_state()[1].tolist() == drawn[1]
    assert random.getstate() == drawn[2] and torch.equal(loader.generator.get_state(), drawn[3])


def test_our_loaders_go_on_to_the_next_epoch_and_are_left_in_theirs():
    data = load_data("shapes", limit=200, batch_size=8, recipe="eva6_s8")
    data.train.set_epoch(3)
    order = data.train.order()
    model = TinyNet(10)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    lr_find(model, data.train, torch.optim.SGD(model.parameters(), lr=0.1), steps=50, start=1e-5, end=1e-3, **QUIET)
    assert data.train.epoch == 3 and torch.equal(data.train.order(), order)
    expected = []
    for epoch in (3, 4):
        data.train.set_epoch(epoch)
        expected += [images for images, _ in data.train]
    assert all(map(torch.equal, seen, expected)) and len(seen) == 50


class Drawn(Dataset):
    """Images that each worker draws from its own generator."""

    def __len__(self):
        return 88

    def __getitem__(self, index):
        return torch.randn(3, 8, 8), index % 4


def test_workers_that_persist_are_left_where_they_were():
    model, _, optimizer = parts()
    seen = []
    for finding in (False, True):
        torch.manual_seed(3)
        loader = DataLoader(Drawn(), batch_size=4, num_workers=1, persistent_workers=True)
        list(loader)
        if finding:
            before, running = loader._iterator, len(multiprocessing.active_children())
            lr_find(model, loader, optimizer, steps=20, **QUIET)
            assert loader._iterator is before and len(multiprocessing.active_children()) == running
        seen.append(torch.cat([images for images, _ in loader]))
        loader._iterator._shutdown_workers()
    assert torch.equal(*seen)


def test_a_criterions_own_parameters_are_trained_and_put_back():
    """As those of a model are that scales the logits itself."""

    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

        def forward(self, *given):
            return self.inner(given[0] * self.scale, *given[1:])

    losses = []
    for outside in (True, False):
        model, loader, _ = parts()
        scaled = Scaled(nn.CrossEntropyLoss() if outside else nn.Identity())
        model, criterion = (model, scaled) if outside else (nn.Sequential(model, scaled), None)
        optimizer = torch.optim.SGD([*model.parameters(), *(scaled.parameters() if outside else [])], lr=0.1)
        losses.append(lr_find(model, loader, optimizer, criterion, end=1, steps=40, **QUIET).losses)
        assert scaled.scale.item() == 1 and scaled.scale.grad is None
    assert losses[0] == losses[1]


def test_a_criterion_with_state_is_left_as_it_was():
    class Counting(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits, labels):
            self.calls += 1
            return super().forward(logits, labels)

    model, loader, optimizer = parts()
    criterion = Counting(weight=torch.ones(4))
    lr_find(model, loader, optimizer, criterion, steps=20, **QUIET)
    assert criterion.calls == 0 and criterion.weight.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("bad", ["diverges", "nan"])
def test_it_stops_where_the_loss_diverges(bad):
    model, loader, optimizer = parts()

    def criterion(logits, labels):
        loss = nn.functional.cross_entropy(logits, labels)
        high = optimizer.param_groups[0]["lr"] > 1e-3
        return loss * (1e6 if bad == "diverges" else math.nan) if high else loss

    before = copy.deepcopy(model.state_dict())
    curve = lr_find(model, loader, optimizer, criterion, start=1e-6, end=1, steps=61, **QUIET)
    last = curve.rates[-1]
    assert last == pytest.approx(10**-2.9 if bad == "diverges" else 1e-3)
    assert all(map(math.isfinite, curve.losses))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_forward_makes_and_what_the_loss_owns_are_put_back():
    class Masked(TinyNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", None, persistent=False)
            self.register_buffer("seen", None)

        def forward(self, x):
            self.mask, self.seen = torch.ones(()), torch.ones(())
            return super().forward(x) * self.mask

    model, (_, loader, _) = Masked(), parts()
    scale = nn.Parameter(torch.zeros(()))
    scale.grad = torch.ones(())
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    lr_find(model, loader, optimizer, lambda a, b: nn.functional.cross_entropy(a * scale.exp(), b), **QUIET)
    assert model.mask is None and model.seen is None and optimizer.param_groups[0]["lr"] == 0.1
    assert scale.item() == 0 and scale.grad.item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0}, "start is a number above 0 and below 1, not 0"),
        ({"start": 1, "end": 0.1}, "start is a number above 0 and below 0.1, not 1"),
        ({"steps": 5}, "steps is a whole number from 20 up, not 5"),
        ({"criterion": lambda a, b: -a.exp().mean()}, r"the loss of batch \d+ is -.*; lr_find wants one .* never neg"),
        ({"criterion": nn.NLLLoss()}, "NLLLoss takes log-probabilities and the model returns logits"),
        ({"start": 1e9, "end": 1e12}, "the loss diverged after .* steps, at a rate of"),
    ],
)
def test_misuse_is_refused(options, message):
    model, loader, optimizer = parts()
    with pytest.raises(ValueError, match=message):
        lr_find(model, loader, optimizer, **options, **QUIET)


def broken(kind):
    def criterion(logits, labels):
        if kind == "raises":
            raise ArithmeticError("broken on purpose")
        return logits.sum() * math.nan

    return criterion


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [("raises", ArithmeticError, "on purpose"), ("nan", ValueError, "the loss is not finite at first; lower start")],
)
def test_a_loss_that_fails_at_once_leaves_no_trace(kind, error, message):
    model, loader, optimizer = parts()
    model.register_buffer("seen", torch.zeros(1), persistent=False)
    model.register_forward_hook(lambda module, inputs, output: model.seen.add_(1) and None)
    before, rate = copy.deepcopy(model.state_dict()), optimizer.param_groups[0]["lr"]
    with pytest.raises(error, match=message):
        lr_find(model, loader, optimizer, broken(kind), **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.seen == 0 and optimizer.param_groups[0]["lr"] == rate and not optimizer.state


def test_a_loss_that_is_not_finite_in_float16_names_the_other_precision(monkeypatch):
    monkeypatch.setattr("eva_utils.utils.lr_finder.pick_precision", lambda *_: torch.float16)
    with pytest.raises(ValueError, match=r"not finite at first; .*so try precision='float32' too"):
        lr_find(*parts(), broken("nan"), device="cpu")


class Once(list):
    """Batches that come to an end for good."""

    def __iter__(self):
        while self:
            yield self.pop()


def test_what_fit_refuses_is_refused():
    model, loader, optimizer = parts()
    other = torch.optim.SGD(TinyNet().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the optimizer holds no parameter of this model"):
        lr_find(model, loader, other, **QUIET)
    with pytest.raises(TypeError, match="criterion is a loss such as"):
        lr_find(model, loader, optimizer, nn.CrossEntropyLoss, **QUIET)
    with pytest.raises(TypeError, match=r"lr_find takes the optimizer of the run to come, .*, not None"):
        lr_find(model, loader, None, **QUIET)
    grey = DataLoader([(torch.zeros(1, 8, 8), 0)] * 88, batch_size=4)
    with pytest.raises(ValueError, match=r"the model takes images of 3 channels and these are \(4, 1, 8, 8\)"):
        lr_find(model, grey, optimizer, **QUIET)
    with pytest.raises(TypeError, match=r"^loader \(generator\) can be passed over only once"):
        lr_find(model, (batch for batch in loader), optimizer, **QUIET)
    with pytest.raises(ValueError, match="the loader yields nothing the second time; pass a loader that can be"):
        lr_find(model, Once(loader), optimizer, **QUIET)
    few = TinyNet(2)
    with pytest.raises(ValueError, match="batch 0 has labels from 0 to 3 and the model 2 classes"):
        lr_find(few, loader, torch.optim.SGD(few.parameters(), lr=0.1), **QUIET)


def test_groups_keep_the_ratio_of_their_rates_and_get_their_own_back():
    model, loader, _ = parts()
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1 * n} for n, p in enumerate(model.parameters(), 1)], lr=1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    seen = []
    model.register_forward_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    curve = lr_find(model, loader, optimizer, steps=20, end=0.1, **QUIET)
    assert [tried[0] for tried in seen] == curve.rates
    for tried in seen:
        assert tried == pytest.approx([n * tried[0] for n in range(1, len(rates) + 1)])
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_a_loader_too_short_is_refused():
    model, loader, optimizer = parts(batch_size=22)
    with pytest.raises(ValueError, match="the loader has 4 batches and lr_find wants 16; make the batches smaller"):
        lr_find(model, loader, optimizer, **QUIET)


def test_a_one_cycle_schedule_goes_on_from_its_first_rate():
    model, loader, optimizer = parts()
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    before = scheduler.get_last_lr()
    lr_find(model, loader, optimizer, steps=20, **QUIET)
    assert [group["lr"] for group in optimizer.param_groups] == before
