"""A run goes on only as it began: what differs is named, before anything is changed."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LinearLR, MultiStepLR, SequentialLR
from torch.utils.data import DataLoader

from conftest import QUIET, TinyNet, random_batches
from eva_utils import main as engine
from eva_utils.utils import verified
from eva_utils.utils.checkpoint import load_weights
from eva_utils.utils.loader import Loader
from eva_utils.utils.runtime import seed_everything
from eva_utils.utils.transforms import train_transform
from runs import Restless, assert_equal_weights


def other_run(**change):
    model = change.get("model", TinyNet())
    optimizer = change.get("optimizer", torch.optim.SGD)(model.parameters(), lr=0.05)
    images = torch.zeros(24, 3, 8, 8, dtype=torch.uint8) + change.get("pixel", 0)
    transform = train_transform(change.get("recipe", "none"), (0.5,) * 3, (0.2,) * 3)
    loader = Loader(
        images, torch.arange(24) % 4, transform, batch_size=change.get("batch_size", 8), seed=change.get("seed", 0)
    )
    options = {name: change[name] for name in ("precision", "criterion", "warmup", "ema", "clip") if name in change}
    return {"model": model, "train_loader": loader, "test_loader": loader, "optimizer": optimizer, **QUIET, **options}


def altered(**layers):
    """A network of the same weights, one of whose layers is another."""
    model = TinyNet()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


def test_a_resumed_record_keeps_the_settings_it_was_made_with(tmp_path):
    seed_everything(11)
    engine.fit(**other_run(), epochs=1, seed=7, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume: optimizer group 0 lr was 0\.05 and is now 0\.5"):
        run = other_run()
        run["optimizer"] = torch.optim.SGD(run["model"].parameters(), lr=0.5)
        engine.fit(**run, epochs=2, checkpoint=tmp_path, resume=True)
    history = engine.fit(**other_run(), epochs=2, checkpoint=tmp_path, resume=True)
    assert history.settings["seed"] == 7 and history.settings["epochs"] == 2


def test_a_finished_run_is_loaded_whatever_fewer_epochs_are_asked_for(tmp_path):
    lines = []
    first = engine.fit(**other_run(), epochs=2, checkpoint=tmp_path)
    for epochs, more in ((2, ""), (1, ", more than the 1 asked for")):
        run = {**other_run(), "log": lines.append}
        history = engine.fit(**run, epochs=epochs, checkpoint=tmp_path, resume=True)
        assert history.rows == first.rows and history.settings["epochs"] == 2
        said = f"The run in {tmp_path} has finished its 2 epochs{more}: its weights and history are loaded"
        assert lines.pop() == said


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model": TinyNet(5)},
            r"the model is another one: 'fc.weight' is \(4, 6\) in the file and \(5, 6\) in the model",
        ),
        ({"model": Restless(TinyNet())}, "the model is another one: 'net.conv.weight' is only in the model"),
        ({"model": altered(drop=nn.Dropout(0.1))}, r"model layer drop p was 0\.3 and is now 0\.1; build the one that"),
        ({"model": altered(drop=nn.Identity())}, "model layer drop class was 'Dropout' and is now 'Identity'"),
        ({"model": altered(act=nn.ReLU())}, "model layer act was None and is now {'class': 'ReLU'}"),
        (
            {"model": altered(conv=nn.Conv2d(3, 6, 3, 2, 1))},
            r"model layer conv stride was \[1, 1\] and is now \[2, 2\]",
        ),
        ({"optimizer": torch.optim.Adam}, "optimizer class was 'SGD' and is now 'Adam'"),
        ({"batch_size": 7}, "train_loader batch_size was 8 and is now 7"),
        ({"seed": 1}, "train_loader seed was 0 and is now 1"),
        ({"pixel": 1}, "the images or labels of the train_loader are not those the run began with; make"),
        ({"recipe": "eva8_s7"}, "train_loader transform was 'Normalize"),
        ({"warmup": 1}, "warmup was 0 and is now 1"),
        ({"ema": 0.9}, "ema was None and is now 0.9"),
        ({"clip": 1.0}, "clip was None and is now 1.0"),
        ({"precision": "bfloat16"}, "precision was 'float32' and is now 'bfloat16'"),
        (
            {"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)},
            r"criterion label_smoothing was 0\.0 and is now 0\.1",
        ),
    ],
)
def test_resuming_what_does_not_fit_is_refused_naming_the_difference(change, message, tmp_path):
    engine.fit(**other_run(), epochs=1, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        engine.fit(**other_run(**change), epochs=2, checkpoint=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Cools(TinyNet):
    """Its dropout falls with every batch it is trained on."""

    def forward(self, x):
        if self.training:
            self.drop.p *= 0.9
        return super().forward(x)


def test_a_layer_that_changes_as_the_model_trains_does_not_stop_a_resume(tmp_path):
    model = Cools()
    engine.fit(**other_run(model=model), epochs=1, checkpoint=tmp_path)
    for resumed in (model, Cools()):  # the cell that was run again, and a new session
        assert len(engine.fit(**other_run(model=resumed), epochs=2, checkpoint=tmp_path, resume=True)) == 2


SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)


def scheduled(schedule):
    """A run by SGD whose schedule the function makes of the optimizer."""
    run = other_run()
    return {**run, "scheduler": schedule(run["optimizer"])}


def chained(*gammas):
    return lambda optimizer: ChainedScheduler([ExponentialLR(optimizer, gamma) for gamma in gammas])


def in_turn(gamma, milestone=1):
    return lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1), ExponentialLR(optimizer, gamma)], [milestone]
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (chained(0.5), chained(0.1), r"scheduler part 0 gamma was 0\.5 and is now 0\.1"),
        (chained(0.5), chained(0.5, 0.9), "scheduler part 1 was None and is now {'class': 'ExponentialLR'"),
        (chained(0.5, 0.9), chained(0.5), r"scheduler part 1 was {'class': 'ExponentialLR', .*} and is now None"),
        (in_turn(0.5), in_turn(0.1), r"scheduler part 1 gamma was 0\.5 and is now 0\.1"),
        (in_turn(0.5), in_turn(0.5, milestone=2), r"scheduler milestones was \[1\] and is now \[2\]"),
        (
            lambda optimizer: MultiStepLR(optimizer, [2, 3]),
            lambda optimizer: MultiStepLR(optimizer, [10, 20]),
            r"scheduler milestones was \[2, 3\] and is now \[10, 20\]",
        ),
    ],
)
def test_a_schedule_made_of_others_is_compared_whole(first, second, message, tmp_path):
    engine.fit(**scheduled(first), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        engine.fit(**scheduled(second), epochs=3, checkpoint=tmp_path, resume=True)
    assert len(engine.fit(**scheduled(first), epochs=3, checkpoint=tmp_path, resume=True)) == 3


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (F.cross_entropy, SMOOTHED, r"criterion arguments was \[\] and is now \['label_smoothing'\]"),
        (SMOOTHED, F.cross_entropy, r"criterion arguments was \['label_smoothing'\] and is now \[\]"),
        (
            SMOOTHED,
            partial(F.cross_entropy, label_smoothing=0.2),
            r"criterion label_smoothing was 0\.1 and is now 0\.2",
        ),
    ],
)
def test_what_a_function_is_given_as_a_loss_is_compared(first, second, message, tmp_path):
    engine.fit(**other_run(criterion=first), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        engine.fit(**other_run(criterion=second), epochs=2, checkpoint=tmp_path, resume=True)
    assert len(engine.fit(**other_run(criterion=first), epochs=2, checkpoint=tmp_path, resume=True)) == 2


@pytest.mark.parametrize(
    ("build", "before", "now"),
    [(torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.5}), (torch.optim.Adam, {}, {"betas": (0.5, 0.9)})],
)
def test_options_that_no_schedule_has_changed_are_compared(build, before, now, tmp_path):
    def run(epochs, options):
        parts = other_run()
        parts["optimizer"] = build(parts["model"].parameters(), lr=0.05, **options)
        return engine.fit(**parts, epochs=epochs, checkpoint=tmp_path, resume="auto")

    run(1, before)
    with pytest.raises(ValueError, match=f"cannot resume: optimizer group 0 {next(iter(now))} was"):
        run(2, now)
    assert len(run(2, before)) == 2


def test_a_schedule_that_was_forgotten_is_named_before_the_options_it_had_set(tmp_path):
    def run(epochs, scheduled):
        parts = other_run()
        parts["optimizer"] = torch.optim.Adam(parts["model"].parameters(), lr=0.01)
        if scheduled:
            parts["scheduler"] = torch.optim.lr_scheduler.OneCycleLR(parts["optimizer"], 0.01, total_steps=40)
        return engine.fit(**parts, epochs=epochs, checkpoint=tmp_path, resume="auto")

    run(1, True)
    with pytest.raises(
        ValueError, match="scheduler class was 'OneCycleLR' and is now 'ReduceLROnPlateau'; pass the scheduler"
    ):
        run(2, False)


class Inner(nn.Module):
    """A loss of one's own that holds another, and a number in a tensor."""

    def __init__(self, smoothing, alpha):
        super().__init__()
        self.loss, self.alpha = nn.CrossEntropyLoss(label_smoothing=smoothing), torch.tensor(alpha)

    def forward(self, logits, labels):
        return self.alpha * self.loss(logits, labels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Inner(0.5, 1.0), r"criterion loss label_smoothing was 0\.1 and is now 0\.5"),
        (Inner(0.1, 2.0), r"criterion alpha was 1\.0 and is now 2\.0"),
    ],
)
def test_a_loss_inside_another_is_compared(changed, message, tmp_path):
    engine.fit(**other_run(criterion=Inner(0.1, 1.0)), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        engine.fit(**other_run(criterion=changed), epochs=2, checkpoint=tmp_path, resume=True)


class Running(nn.Module):
    """A loss that keeps running means, counts, and holds a part that counts; what it keeps is no option."""

    def __init__(self, weight=2.0):
        super().__init__()
        self.mean, self.part, self.calls = torch.zeros(3), nn.Identity(), 0
        self.part.calls = 0
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("weight", torch.tensor([1.0, weight, 1.0, 1.0]))

    def forward(self, logits, labels):
        self.part.calls += 1
        self.calls += 1
        self.mean = self.mean + 1
        self.scale.mul_(0.5)
        return nn.functional.cross_entropy(logits, labels, self.weight)


def test_what_a_loss_counts_does_not_stop_a_resume(tmp_path):
    run = other_run(criterion=Running())
    engine.fit(**run, epochs=1, checkpoint=tmp_path)
    calls, scale = run["criterion"].calls, run["criterion"].scale.clone()
    assert len(engine.fit(**run, epochs=2, checkpoint=tmp_path, resume=True)) == 2
    anew = other_run(criterion=Running())
    assert len(engine.fit(**anew, epochs=2, checkpoint=tmp_path, resume=True)) == 2
    # A pass of three batches to train on and of three to test on halves the scale six times.
    assert calls > 0 and scale == 2.0**-6 and anew["criterion"].scale == run["criterion"].scale == 2.0**-12
    with pytest.raises(ValueError, match=r"criterion weight was \[1\.0, 2\.0, 1\.0, 1\.0\] and is now \[1\.0, 3\.0"):
        engine.fit(**other_run(criterion=Running(3.0)), epochs=3, checkpoint=tmp_path, resume=True)


def test_the_order_of_ones_own_loader_is_compared_before_anything_is_changed(tmp_path):
    def run(epochs, **options):
        parts = other_run()
        parts["train_loader"] = DataLoader(random_batches(24), batch_size=8, **options)
        start = copy.deepcopy(parts["model"].state_dict())
        try:
            engine.fit(**parts, epochs=epochs, checkpoint=tmp_path, resume="auto")
        except ValueError:
            assert_equal_weights(parts["model"].state_dict(), start)
            raise

    run(1, shuffle=True, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="train_loader generators was 1 and is now 0"):
        run(2, shuffle=True)
    with pytest.raises(ValueError, match="train_loader shuffle was True and is now False"):
        run(2, shuffle=False)


@pytest.mark.parametrize("name", ["criterion", "generators"])
def test_a_run_saved_without_a_state_that_is_needed_is_refused_before_anything_is_changed(name, tmp_path):
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 1.0]))
    engine.fit(**other_run(criterion=weighted), epochs=1, checkpoint=tmp_path)
    path = tmp_path / "epoch-0001.pt"
    state = verified.load_verified(path)
    del state[name]
    verified.save_verified(path, state)
    run = other_run(criterion=weighted)
    start = copy.deepcopy(run["model"].state_dict())
    with pytest.raises(ValueError, match=f"cannot resume: the run was saved without the state of its {name}, as an"):
        engine.fit(**run, epochs=2, checkpoint=tmp_path, resume=True)
    assert_equal_weights(run["model"].state_dict(), start)


def test_a_generator_that_two_loaders_shared_is_not_taken_for_two(tmp_path):
    def run(epochs, *generators):
        parts = other_run()
        for name, generator in zip(("train_loader", "test_loader"), generators, strict=True):
            parts[name] = DataLoader(random_batches(24), batch_size=8, shuffle=True, generator=generator)
        start = copy.deepcopy(parts["model"].state_dict())
        try:
            return engine.fit(**parts, epochs=epochs, checkpoint=tmp_path, resume="auto")
        except ValueError:
            assert_equal_weights(parts["model"].state_dict(), start)
            raise

    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    run(1, first, first)
    with pytest.raises(ValueError, match="the loaders had 1 generators between them and now have 2; make them"):
        run(2, first, second)
    assert len(run(2, first, first)) == 2


class Noted(TinyNet):
    """Keeps beside its weights what is neither a tensor nor a plain value."""

    def get_extra_state(self):
        return {"made by": object()}

    def set_extra_state(self, state):
        pass


def test_what_cannot_be_saved_is_refused_before_the_first_epoch(tmp_path):
    lines, unsavable = [], other_run()
    unsavable["scheduler"] = torch.optim.lr_scheduler.ConstantLR(unsavable["optimizer"], factor=1)
    unsavable["scheduler"].note = lambda: None
    for number, run in enumerate((unsavable, other_run(model=Noted()))):
        with pytest.raises(TypeError, match=r"epoch-0001\.pt would hold more than tensors and plain values"):
            engine.fit(**{**run, "log": lines.append}, epochs=1, checkpoint=tmp_path / str(number))
    assert lines == []


def test_what_a_module_keeps_beside_its_weights_is_loaded_again(tmp_path):
    class Counts(TinyNet):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    trained, other = Counts(), Counts()
    engine.fit(**other_run(model=trained), epochs=1, checkpoint=tmp_path)
    assert load_weights(other, tmp_path, "last").calls == trained.calls > 0


def test_options_that_another_torch_has_do_not_stop_a_resume(tmp_path):
    engine.fit(**other_run(), epochs=1, checkpoint=tmp_path)
    path = tmp_path / "epoch-0001.pt"
    state = verified.load_verified(path)
    settings = state["history"]["settings"]
    settings["scheduler"]["verbose"] = False
    del settings["optimizer"]["group 0"]["maximize"]
    verified.save_verified(path, state)
    assert len(engine.fit(**other_run(), epochs=2, checkpoint=tmp_path, resume=True)) == 2
    run = other_run()
    run["optimizer"].add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="cannot resume: optimizer group 1 was None and is now"):
        engine.fit(**run, epochs=3, checkpoint=tmp_path, resume=True)
