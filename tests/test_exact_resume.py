"""A resumed run equals an undisturbed one bit for bit."""

import contextlib
import signal
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from alone import ALONE, needs_alone
from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import checkpoint as disk
from eva_utils.utils import verified
from eva_utils.utils.loader import Loader
from eva_utils.utils.runtime import seed_everything
from eva_utils.utils.transforms import train_transform
from plain import SCHEDULERS
from runs import Restless, StopAfter, assert_equal_weights, check_resumes_exactly, make_run, train_telling, without_time


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


def test_epochs_may_grow(tmp_path):
    model, history = make_run(epochs=5)
    make_run(epochs=2, checkpoint=tmp_path)
    grown_model, grown = make_run(epochs=5, checkpoint=tmp_path, resume=True)
    assert without_time(grown) == without_time(history) and grown.settings["epochs"] == 5
    assert_equal_weights(grown_model.state_dict(), model.state_dict())


@needs_alone
@pytest.mark.parametrize(("precision", "delays"), [("float32", (0.0, 0.03, 0.1)), ("bfloat16", (0.03,))])
def test_killed_at_any_moment_and_resumed_it_is_bit_identical(precision, delays, tmp_path):
    model, history = make_run(epochs=30, precision=precision)
    folder = tmp_path / "run"
    for delay in delays:
        lines, teller = ALONE.Pipe(duplex=False)
        options = {"precision": precision, "checkpoint": folder}
        process = ALONE.Process(target=train_telling, args=(teller,), kwargs=options)
        process.start()
        teller.close()
        while not lines.recv().startswith("Test set"):  # an epoch has ended: it is about to be saved
            pass
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    resumed_model, resumed = make_run(epochs=30, precision=precision, checkpoint=folder, resume="auto")
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert_equal_weights(verified.load_verified(folder / "last.pt"), model.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",         "best.pt", "epoch-0029.pt", "epoch-0030.pt", "history.json", "last.pt",
    ]  # fmt: skip


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


def test_workers_that_stay_are_started_before_the_generators_are_put_back(tmp_path):
    def run(log=None, **options):
        seed_everything(3)
        workers = {"batch_size": 8, "num_workers": 1, "persistent_workers": True}
        loader = DataLoader(random_batches(22), shuffle=True, **workers)
        test_loader = DataLoader(random_batches(9), **workers)
        model = TinyNet()
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


def averaged_heat(steps):
    """The average of 0.9, 0.9**2, ... at a decay that rises to 0.9."""
    average = 0.9
    for done in range(1, steps):
        decay = min(0.9, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * 0.9 ** (done + 1)
    return average


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
    expected = [0.9**12, 0.9**6, 0.9**12]
    if ema:  # what is left is what was tested
        expected = [averaged_heat(steps) for steps in (12, 6, 12)]
    assert heats == pytest.approx(expected, rel=1e-5)
    assert sizes == ([1, 1, 1] if ema else [13, 7, 13])
