"""One forward pass: in the layout that the model can run in, and with the loss that it means."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils.averaging import MovingAverage
from eva_utils.utils.meter import FirstBad, Meter, Score
from eva_utils.utils.optim import make_optimizer
from eva_utils.utils.runtime import seed_everything
from plain import new_loaders as loaders

ONE_OUT = torch.tensor([1.0, 2.0, 0.5, 0.0])


class Views(nn.Module):
    """Reshapes by view() what its convolution returns, as many a tutorial's network does."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5 * 36, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(-1, 5 * 36))


def test_a_network_that_views_its_maps_trains_in_half_precision_too():
    model, plain = Views(), Views()
    plain.load_state_dict(model.state_dict())
    options = {"log": None, "device": "cpu", "precision": "bfloat16"}
    engine.fit(model, *loaders(), epochs=2, seed=0, **options)
    assert model.conv.weight.is_contiguous()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    seed_everything(0)
    train_loader, test_loader = loaders()
    for _ in range(2):
        for images, labels in train_loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = plain(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        list(test_loader)  # draws as well
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-4)
    assert engine.test(Views(), test_loader, device="cpu", precision="bfloat16").samples == 13


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_class_weights_make_a_mean_whatever_the_batches(loss):
    torch.manual_seed(0)
    images, labels = torch.randn(30, 3, 8, 8), torch.arange(30) * 4 // 30  # in the order of their classes
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.LogSoftmax(dim=1))
    criterion = loss(weight=torch.tensor([10.0, 1.0, 0.5, 2.0]))
    scores = []
    for size in (30, 8, 1):
        loader = DataLoader(TensorDataset(images, labels), batch_size=size)
        scores.append(engine.test(model, loader, criterion=criterion, device="cpu", precision="float32"))
    with torch.no_grad():
        expected = criterion(model(images), labels).item()
    assert [score.loss for score in scores] == pytest.approx([expected] * 3, rel=1e-5)


class Subclass(nn.CrossEntropyLoss):
    """Cross entropy by another name."""


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, Subclass])
@pytest.mark.parametrize("weight", [None, torch.tensor([10.0, 1.0, 0.5, 2.0])])
def test_an_ignored_class_counts_in_no_batch(weight, kind):
    torch.manual_seed(0)
    images, labels = torch.randn(30, 3, 8, 8), torch.arange(30) % 4
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), kind(weight, ignore_index=2)
    losses = []
    for size in (30, 8, 7):
        loader = DataLoader(TensorDataset(images, labels), batch_size=size)
        losses.append(engine.test(model, loader, criterion=criterion, device="cpu", precision="float32").loss)
    with torch.no_grad():
        expected = criterion(model(images), labels).item()
    assert losses == pytest.approx([expected] * 3, rel=1e-5)


class Ordered:
    """Batches in the order of their classes, so that the last one is of class 3 alone."""

    def __init__(self):
        torch.manual_seed(0)
        self.images, self.labels = torch.randn(32, 3, 8, 8), torch.arange(32) // 8

    def __len__(self):
        return 4

    def __iter__(self):
        yield from zip(self.images.split(8), self.labels.split(8), strict=True)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(ignore_index=3), nn.CrossEntropyLoss(ONE_OUT)])
def test_a_batch_of_which_no_label_counts_adds_nothing_to_the_loss(criterion):
    loader = Ordered()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    found = engine.test(model, loader, criterion=criterion, device="cpu", precision="float32").loss
    with torch.no_grad():
        assert found == pytest.approx(criterion(model(loader.images), loader.labels).item(), rel=1e-5)


def test_training_goes_on_over_a_batch_that_is_ignored_as_a_plain_loop_does():
    loader, criterion = Ordered(), nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1)
    model, plain = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    ours, theirs = (torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (model, plain))
    score = engine.train(model, loader, ours, criterion=criterion, device="cpu", precision="float32", log=None)
    losses = []
    for images, labels in loader:
        theirs.zero_grad()
        losses.append(criterion(plain(images), labels))
        losses[-1].backward()
        theirs.step()
    assert losses[1].isnan()
    assert score.loss == pytest.approx((losses[0] + losses[2] + losses[3]).item() / 3, rel=1e-5)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_training_on_a_batch_whose_class_weights_are_all_0_is_refused_before_its_step():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(ONE_OUT)
    message = "the loss is 0/0 at batch 3, whose labels all have class weight 0; give their classes a weight above 0"
    with pytest.raises(FloatingPointError, match=message):
        engine.train(model, Ordered(), optimizer, criterion=criterion, device="cpu", precision="float32", log=None)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("call", ["train", "test"])
def test_a_loss_that_is_no_mean_is_refused(call, tiny_net):
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 8, 8), torch.arange(4)), batch_size=4)
    parts = [torch.optim.SGD(tiny_net.parameters(), 0.1)] if call == "train" else []
    with pytest.raises(ValueError, match="must average over the batch, not reduction='sum'"):
        getattr(engine, call)(tiny_net, loader, *parts, criterion=nn.CrossEntropyLoss(reduction="sum"))


class Halved(nn.CrossEntropyLoss):
    """Weighs the classes and divides by the number of images, as a focal loss does."""

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels, self.weight, reduction="none").mean()


def test_a_loss_of_ones_own_that_weighs_classes_counts_by_images():
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) // 4
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Halved(torch.tensor([10.0, 0.1]))
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    found = engine.test(model, loader, criterion=criterion, device="cpu", precision="float32").loss
    with torch.no_grad():
        assert found == pytest.approx(criterion(model(images), labels).item(), rel=1e-5)


def test_weights_of_0_make_the_loss_nan():
    model, loss = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), nn.CrossEntropyLoss(torch.tensor([0.0, 1.0]))
    loader = [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))]
    assert math.isnan(engine.test(model, loader, criterion=loss, device="cpu", precision="float32").loss)


class Broken(nn.Module):
    def __init__(self, norm, linear, flat):
        super().__init__()
        self.conv, self.norm, self.fc, self.flat = nn.Conv2d(3, 5, 3), norm, linear, flat

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.fc(x.flatten(1) if self.flat else x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Broken(nn.Identity(), nn.Linear(10, 4), True),
            r"in fc, Linear\(in_features=10, .*\), which was given \(8, 180\) \(for these it is nn\.Linear\(180, 4\)\)",
        ),
        (
            Broken(nn.Identity(), nn.Linear(180, 4), False),
            r"given \(8, 5, 6, 6\) \(flatten maps before it: x\.flatten\(1\)\)",
        ),
        (
            Broken(nn.LayerNorm(5), nn.Linear(180, 4), True),
            r"in norm, LayerNorm\(\(5,\).* \(of maps normalize all channels together by nn\.GroupNorm\(1, 5\)\)",
        ),
        (
            Broken(nn.Conv2d(6, 5, 1), nn.Linear(180, 4), True),
            r"in norm, Conv2d\(6, .* \(for these its in_channels are 5",
        ),
        (Broken(nn.BatchNorm2d(6), nn.Linear(180, 4), True), r"in norm, .* \(for these it is nn\.BatchNorm2d\(5\)\)"),
    ],
    ids=["linear", "maps", "layer norm", "convolution", "batch norm"],
)
def test_the_layer_that_does_not_fit_is_named_with_what_would(model, message):
    with pytest.raises(ValueError, match=message):
        engine.fit(model, *loaders(), epochs=1, log=None, device="cpu", precision="float32")


@pytest.mark.parametrize("compiled", ["given", "by fit"])
def test_a_compiled_network_that_views_its_maps_trains_in_half_precision_too(compiled, monkeypatch):
    compile_plain, options = torch.compile, {"epochs": 1, "log": None, "device": "cpu", "precision": "bfloat16"}
    if compiled == "given":
        assert len(engine.fit(torch.compile(Views(), backend="eager"), *loaders(), **options)) == 1
        return
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_plain(model, backend="eager"))
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl))
    )
    assert len(engine.fit(Views(), *loaders(), compile=True, ema=0.9, **options)) == 1


class NoImages(nn.Linear):
    def forward(self):
        return self.weight


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return x


class Wrapped(nn.Linear):
    def __init__(self):
        super().__init__(192, 4)

    @functools.wraps(TwoInputs.forward)
    def forward(self, x):
        return super().forward(x.flatten(1))


def test_a_forward_that_wraps_another_is_asked_itself():
    assert len(engine.fit(Wrapped(), *loaders(), epochs=1, log=None, device="cpu", precision="float32")) == 1


@pytest.mark.parametrize(("kind", "said"), [(NoImages, "too many positional"), (TwoInputs, "missing a required .*'y'")])
def test_a_forward_that_does_not_take_images_alone_is_refused(kind, said):
    with pytest.raises(TypeError, match=rf"{kind.__name__}'s forward cannot be called on images alone \(.*{said}"):
        engine.fit(kind(2, 2), *loaders(), epochs=1, log=None)


@pytest.mark.parametrize(
    ("name", "options", "optimizer"),
    [
        ("small_resnet", {"norm": "batch"}, "sgd"),
        ("flip_resnet", {"standardize": True}, "sgd"),
        ("vit", {}, "adamw"),
        ("whitened_resnet", {}, "muon"),
    ],
)
def test_an_epoch_reads_nothing_from_the_device_before_its_end(name, options, optimizer, monkeypatch):
    """On the meta device there are no values, so that whatever waits for one raises."""
    monkeypatch.setattr(engine, "check_trainable", lambda model: None)  # which refuses the meta device
    monkeypatch.setattr("eva_utils.utils.forward.check_loss", lambda *_: None)  # which reads the first batch's logits
    criterion = nn.CrossEntropyLoss(ignore_index=3)
    with torch.device("meta"):
        model = create_model(name, num_classes=10, **options)
    optimizer, average = make_optimizer(optimizer, model, lr=0.1), MovingAverage(create_model(name, **options), 0.9)
    average.module.to("meta")  # after it was made, which looks for infinite values
    batches = [(torch.zeros(8, 3, 32, 32), torch.arange(8))] * 2
    options = {"criterion": criterion, "device": "meta"}
    train = functools.partial(
        engine.train, model, batches, optimizer, clip=1.0, ema=average, progress=False, log=None, **options
    )
    for epoch in (train, functools.partial(engine.test, model, batches, **options)):
        with pytest.raises(RuntimeError, match="meta tensors"):
            epoch()
    monkeypatch.setattr(FirstBad, "check", lambda self: None)
    monkeypatch.setattr(Meter, "score", lambda self: Score(0, 0, 0, self.samples))
    assert train().samples == engine.test(model, batches, **options).samples == 16


def test_a_loss_that_is_nan_in_float16_names_the_other_precision():
    first_bad = FirstBad(torch.device("cpu"), torch.float16)
    first_bad.update(torch.tensor(math.inf), 4)
    with pytest.raises(FloatingPointError, match=r"infinite at batch 4; .*so try precision='float32' too"):
        first_bad.check()


@pytest.mark.parametrize("mode", [True, False])
def test_logits_beyond_float16_are_told_in_training_and_in_testing(mode, monkeypatch):
    class Large(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (1e6 if self.training == mode else 1)

    monkeypatch.setattr(engine, "pick_precision", lambda *_: torch.float16)
    model = Large(nn.Flatten(), nn.Linear(192, 4))
    phase = "the loss is NaN or infinite at batch 0" if mode else "the test loss is"
    with pytest.raises(FloatingPointError, match=rf"epoch 1: {phase}.*float16 ends at 65504, so try precision"):
        engine.fit(model, *loaders(), epochs=1, log=None, device="cpu")


def test_a_buffer_of_five_dimensions_trains_in_half_precision():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))
    model.register_buffer("grid", torch.zeros(1, 1, 2, 2, 2))
    assert len(engine.fit(model, *loaders(), epochs=1, log=None, device="cpu", precision="bfloat16")) == 1


def test_an_expanded_or_a_sparse_buffer_is_no_obstacle():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))
    model.register_buffer("graph", torch.eye(4).to_sparse(), persistent=False)
    model.register_buffer("places", torch.arange(3).expand(2, -1), persistent=False)
    assert len(engine.fit(model, *loaders(), epochs=1, log=None, device="cpu", precision="float32")) == 1
    assert model.places.tolist() == [[0, 1, 2], [0, 1, 2]]
