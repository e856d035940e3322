import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eva_utils import main as engine
from eva_utils.utils.averaging import MovingAverage
from eva_utils.utils.optim import (
    learning_rates,
    make_optimizer,
    one_cycle,
    param_groups,
    prepare_fused,
    rate_shares,
)
from eva_utils.utils.schedule import Warmup


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(4, 2))
    model[3].weight.requires_grad_(False)
    decaying, others = param_groups(model, 0.1)
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)] and decaying["weight_decay"] == 0.1
    own = [model[0].bias, model[1].weight, model[1].bias, model[3].bias]
    assert [id(p) for p in others["params"]] == list(map(id, own)) and others["weight_decay"] == 0


def test_optimizers_by_name(tiny_net):
    sgd = make_optimizer("sgd", tiny_net, lr=0.2, momentum=0.8, weight_decay=0.01)
    assert type(sgd) is torch.optim.SGD and sgd.param_groups[0]["momentum"] == 0.8
    adam, adamw = (make_optimizer(name, tiny_net, lr=0.2, momentum=0.8) for name in ("adam", "adamw"))
    assert type(adam) is torch.optim.Adam and type(adamw) is torch.optim.AdamW
    assert adam.param_groups[1]["betas"] == adamw.param_groups[1]["betas"] == (0.8, 0.999)
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.01, 0] and not sgd.defaults["nesterov"]
    assert make_optimizer("sgd", tiny_net, lr=0.2, nesterov=True).defaults["nesterov"] is True
    for name in ("sgd", "adam", "adamw", "muon"):
        plain = make_optimizer(name, tiny_net, lr=0.2)
        assert {group["weight_decay"] for group in plain.param_groups} == {0}
    with pytest.raises(ValueError, match=r"momentum is a number .*, not 1\.5"):
        make_optimizer("sgd", tiny_net, lr=0.1, momentum=1.5)
    with pytest.raises(
        ValueError, match=r"unknown optimizer 'adma': choose one of sgd, adam, adamw, muon; did you mean 'adam'\?"
    ):
        make_optimizer("adma", tiny_net, lr=0.1)


@pytest.mark.parametrize("annihilate", [False, True])
def test_one_cycle_rises_to_its_peak_and_falls(annihilate):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = one_cycle(optimizer, 6, 10, 0.4, 0.1, peak_epoch=2, annihilate=annihilate)
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < 60 else None
    # torch counts the peak's step from 0: 19 steps up, 40 down.
    last = 0.1 / 1e4 if annihilate else 0.1
    expected = [0.1 + 0.3 * step / 19 for step in range(20)] + [0.4 + (last - 0.4) * step / 40 for step in range(1, 41)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_one_cycle_peaks_after_five_epochs_and_ends_where_it_began():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rates = learning_rates(one_cycle(optimizer, 8, 4, 0.4, 0.1), 32)
    assert max(rates) == rates[5 * 4 - 1] == pytest.approx(0.4)
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.1)


def test_rates_are_shares_of_the_first_groups():
    for rates, shares in (((0.2, 0.02, 0.0), [1, 0.1, 0]), ((0.0, 0.1), [1, 1])):
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
        assert rate_shares(torch.optim.SGD(groups)) == pytest.approx(shares)


def test_one_cycle_keeps_the_ratio_of_the_groups_and_a_rate_of_0():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (0.2, 0.02, 0.0)]
    optimizer = torch.optim.SGD(groups)
    one_cycle(optimizer, 6, 10, 0.4, 0.1, peak_epoch=2)
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04, 0])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.01, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_min": 0.4}, r"lr_min is a number above 0 and below 0\.4, not 0\.4"),
        ({"peak_epoch": 6}, "peak_epoch is a number above 0 and below 6, not 6"),
        (
            {"peak_epoch": 0.1},
            r"peak_epoch=0.1 puts the peak on the first batch \(an epoch has 10\); give a later peak_epoch=",
        ),
        (
            {"steps_per_epoch": 1, "epochs": 2, "peak_epoch": 1},
            "a cycle takes three batches at least and the run has 2",
        ),
        ({"steps_per_epoch": 4, "peak_epoch": 0.3}, "puts the peak on the first batch"),
        ({"peak_epoch": 5.97}, "puts the peak on the last batch .*; give an earlier peak_epoch= or a smaller"),
        ({"epochs": 0}, "epochs is a whole number from 1 up, not 0"),
    ],
)
def test_one_cycle_misuse_is_refused(wrong, message, tiny_net):
    arguments = {"epochs": 6, "steps_per_epoch": 10, "lr_max": 0.4, "lr_min": 0.1, **wrong}
    with pytest.raises(ValueError, match=message):
        one_cycle(torch.optim.SGD(tiny_net.parameters(), lr=1.0), **arguments)


def test_what_is_no_model_or_no_optimizer_is_named(tiny_net):
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not generator"):
        param_groups(tiny_net.parameters(), 5e-4)
    for wrong in (-5e-4, "5e-4"):
        with pytest.raises(ValueError, match="weight_decay is a number from 0 up, not"):
            param_groups(tiny_net, wrong)
    with pytest.raises(TypeError, match=r"one_cycle takes an optimizer, as SGD.*, not TinyNet"):
        one_cycle(tiny_net, 6, 10, 0.4, 0.1)


SCHEDULES = {
    "one cycle": lambda optimizer: one_cycle(optimizer, 6, 10, 0.4, 0.1, peak_epoch=2),
    "triangle": lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.5, step_size_up=4),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7),
    "steps": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("before", [0, 5])
def test_the_rates_to_come_are_those_that_then_come(name, before):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = SCHEDULES[name](optimizer)
    for _ in range(before):
        optimizer.step()
        scheduler.step()
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    announced = learning_rates(scheduler, 20)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == options
    came = []
    for _ in range(20):
        came.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert announced == pytest.approx(came, rel=1e-12) and len(set(came)) > 3


def test_the_triangle_is_one_by_hand():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    rates = learning_rates(SCHEDULES["triangle"](optimizer), 10)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2, 0.1, 0.2])


def test_schedules_are_put_back_after_an_error_and_with_tensors_for_rates():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    listed = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1, 0.5, 0.1][step])
    with pytest.raises(IndexError):
        learning_rates(listed, 4)
    assert optimizer.param_groups[0]["lr"] == 1.0 and listed.last_epoch == 0
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert learning_rates(scheduler, 4) == [1.0, 0.5, 0.25, 0.125]
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 1.0


def test_rates_that_cannot_be_known_are_refused():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    with pytest.raises(TypeError, match="learning_rates takes a scheduler, as one_cycle returns, not SGD"):
        learning_rates(optimizer, 5)
    with pytest.raises(TypeError, match="ReduceLROnPlateau follows the losses of a run"):
        learning_rates(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), 5)
    scheduler = SCHEDULES["one cycle"](optimizer)
    with pytest.raises(
        ValueError, match="OneCycleLR has 60 of its 60 steps left, not 61; build optimizer and scheduler"
    ):
        learning_rates(scheduler, 61)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1) and min(learning_rates(scheduler, 60)) > 0


def test_a_model_that_keeps_what_leads_to_a_graph_is_averaged():
    model = nn.Linear(2, 2)
    model.kept = model(torch.ones(1, 2))
    assert torch.equal(MovingAverage(model, 0.9).module.weight, model.weight)


def test_the_moving_average_is_that_of_torch():
    model, decay = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0.3
    ours = MovingAverage(model, decay)
    torchs = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for step in range(12):
        (model(torch.randn(5, 3, 8, 8)) * torch.randn(5, 4, 6, 6)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        ours.update_parameters(model)
        torchs.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
        torchs.update_parameters(model)
        assert int(ours.n_averaged) == step + 1
    assert all(
        torch.equal(one, other)
        for one, other in zip(ours.module.state_dict().values(), torchs.module.state_dict().values(), strict=True)
        if one.is_floating_point()
    )


def test_an_infinite_mask_stays_what_it_is_in_the_average():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))
    average = MovingAverage(model, 0.5)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module.mask, model.mask)


def test_fused_momentum_outlives_a_first_step_that_overflows():
    """Torch leaves its buffers unset then; memory that is not set holds NaN here, so that it shows."""
    weights, on_the_cpu = [], {"device": "cpu", "precision": "float32", "log": None}
    torch.use_deterministic_algorithms(True)
    try:
        for fused in (False, True):
            torch.manual_seed(0)
            model, scaler = nn.Linear(3, 2), torch.amp.GradScaler("cpu", init_scale=2.0**127)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
            images, labels = 20 * torch.randn(8, 3), torch.arange(8) % 2
            engine.train(model, [(images, labels)] * 20, optimizer, scaler=scaler, **on_the_cpu)
            assert 2.0**110 < scaler.get_scale() < 2.0**127  # steps were left out, and others made
            weights.append(model.weight.detach())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(("epochs", "steps", "peak", "at"), [(10, 7, 2.5, 17), (4, 3, 0.5, 1), (24, 98, 5, 489)])
def test_a_peak_within_an_epoch_is_reached_on_a_batch(epochs, steps, peak, at):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    rates = learning_rates(one_cycle(optimizer, epochs, steps, 0.4, 0.004, peak), epochs * steps)
    assert rates[at] == max(rates) == pytest.approx(0.4, rel=1e-12)


class Skips(nn.Module):
    """Uses its second layer in every second batch of training only, as stochastic depth may."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.batches = nn.Linear(3, 4), nn.Linear(4, 4), 0

    def forward(self, x):
        x, self.batches = self.first(x), self.batches + 1
        return x if self.batches % 2 else self.second(x)


def test_a_layer_may_have_its_first_gradient_after_a_fused_optimizers_first_step():
    trained, on_the_cpu = [], {"device": "cpu", "precision": "float32", "log": None}
    batches = [(torch.randn(8, 3), torch.arange(8) % 4) for _ in range(5)]
    for fused in (False, True):
        torch.manual_seed(0)
        model = Skips()
        optimizer = make_optimizer("sgd", model, lr=0.1, momentum=0.9, fused=fused)
        engine.train(model, batches, optimizer, **on_the_cpu)
        trained.append(model)
    torch.testing.assert_close(*(dict(model.named_parameters()) for model in trained))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_fused_optimizer_follows_its_weights_into_another_layout(name):
    trained, batches = [], [(torch.randn(8, 3, 6, 6), torch.arange(8) % 4)] * 5
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 4))
        optimizer = make_optimizer(name, model, lr=0.01, momentum=0.9, fused=fused)
        for precision in ("float32", "bfloat16"):
            engine.train(model, batches, optimizer, device="cpu", precision=precision, log=None)
        trained.append(model)
    assert trained[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*(dict(model.named_parameters()) for model in trained), rtol=0.01, atol=1e-4)


def test_gradients_of_weights_that_the_optimizer_does_not_have_do_not_add_up():
    model, norms = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), []
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.0)
    optimizer.register_step_post_hook(lambda *_: norms.append(model[0].weight.grad.norm().item()))
    batch = (torch.randn(8, 3), torch.arange(8) % 4)
    engine.train(model, [batch] * 3, optimizer, device="cpu", precision="float32", log=None)
    assert norms[0] > 0 and norms == [norms[0]] * 3
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "filled"),
    [
        ({"fused": True, "momentum": 0.9}, True),
        ({"fused": True, "momentum": 0.9, "dampening": 0.5}, False),  # of which a first step takes nothing off
        ({"fused": True}, False),
        ({"momentum": 0.9}, False),
    ],
)
def test_momentum_is_filled_where_torch_would_leave_it_unset(options, filled):
    trained, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = torch.optim.SGD([trained, frozen], lr=0.1, **options)
    prepare_fused(optimizer)
    assert set(optimizer.state) == ({trained} if filled else set())
    assert not filled or optimizer.state[trained]["momentum_buffer"].tolist() == [0, 0]


class EverySecond(torch.optim.SGD):
    """Steps and clears at every second batch only, so that the gradients of two add up."""

    calls = 0

    def zero_grad(self, set_to_none=True):
        if self.calls % 2 == 0:
            super().zero_grad(set_to_none)

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 2 == 0:
            super().step(closure)


def test_an_optimizer_that_adds_up_batches_on_purpose_may():
    torch.manual_seed(0)
    model, batches = nn.Linear(3, 4), [(torch.randn(8, 3), torch.arange(8) % 4) for _ in range(4)]
    plain = copy.deepcopy(model)
    engine.train(model, batches, EverySecond(model.parameters(), lr=0.1), device="cpu", precision="float32", log=None)
    for pair in (batches[:2], batches[2:]):
        plain.zero_grad()
        for images, labels in pair:
            nn.functional.cross_entropy(plain(images), labels).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


class Remembers(nn.Module):
    """Scales its logits by a running value that is in no state_dict."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("heat", torch.ones(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.heat += x.detach().abs().mean()
        return self.fc(x) * self.heat


def test_the_model_that_is_left_is_the_average_that_was_tested_in_every_buffer():
    torch.manual_seed(0)
    model, batches = Remembers(), [(torch.randn(8, 3), torch.arange(8) % 4) for _ in range(3)]
    options = {"device": "cpu", "precision": "float32"}
    history = engine.fit(model, batches, batches[:1], epochs=2, ema=0.9, log=None, **options)
    assert engine.test(model, batches[:1], **options).loss == history.rows[-1]["test_loss"]


def test_the_moving_average_copies_whole_numbers():
    model = nn.BatchNorm1d(2)
    model.register_buffer("places", torch.arange(60))
    average = MovingAverage(model, 0.999)
    for _ in range(50):
        model(torch.randn(4, 2))
        average.update_parameters(model)
    assert torch.equal(average.module.places, torch.arange(60)) and average.module.num_batches_tracked == 50


def test_warmup_sets_rates_that_are_tensors_in_place():
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    warmup = Warmup(optimizer, [0.5], steps=4)
    seen = []
    for _ in range(5):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        warmup.step()
    assert seen == [0.125, 0.25, 0.375, 0.5, 0.5] and isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
