"""Preflight passes a sound set-up and names what is wrong with broken ones."""

import copy
import dataclasses
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from conftest import TinyNet, random_batches
from eva_utils.models import create_model
from eva_utils.utils.assignments import BRIEFS, Brief
from eva_utils.utils.data import load_data
from eva_utils.utils.loader import Loader
from eva_utils.utils.preflight import preflight
from eva_utils.utils.runtime import rng_state
from eva_utils.utils.transforms import Compose, Normalize, denormalize
from test_mistakes import Forgets

IMAGES, LABELS = torch.zeros(20, 3, 32, 32), torch.arange(20) % 10


class Picks(nn.Module):
    """Takes a channel that is not there."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 10)

    def forward(self, x):
        return self.fc(x[:, 5].mean((1, 2))[:, None])


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=200, recipe="eva6_s8", batch_size=64)


def failed(report):
    return {check.name: check for check in report.checks if check.passed is False}


def test_a_sound_set_up_passes_and_is_left_as_it_was(data):
    model = create_model("small_resnet")
    model.layer1.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = rng_state()
    report = preflight(model, data)
    assert report.passed and len(report.checks) == 12 and "FAIL" not in str(report)
    assert [check.name for check in report.checks] == [
        "images are normalized",
        "every layer is known to the model",
        "outputs are logits",
        "evaluation is repeatable",
        "each image is answered by itself",
        "loss starts near chance",
        "one batch can be learnt",
        "gradients reach every parameter",
        "train and test share no image",
        "RandomCrop changes pixels",
        "RandomRotate changes pixels",
        "Cutout changes pixels",
    ]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    after = rng_state()
    assert torch.equal(state["torch"], after["torch"]) and state["python"] == after["python"]
    assert torch.equal(state["numpy"][1], after["numpy"][1])


def test_a_machine_too_slow_to_tell_leaves_the_question_open(data, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.mistakes.MOST_SECONDS", 0)
    report = preflight(create_model("small_resnet"), data)
    (learnt,) = [check for check in report.checks if check.name == "one batch can be learnt"]
    assert learnt.passed is None and report.passed and "FAIL" not in str(report)
    assert "open  one batch can be learnt" in str(report) and "after 5 steps; in 0 seconds" in learnt.found


class Slow(nn.Module):
    """Knows the labels of its 16 images, and gives one more of them right every four steps of 0.001 each."""

    def __init__(self, pace):
        super().__init__()
        self.steps, self.pace = nn.Parameter(torch.zeros(())), pace

    def forward(self, x):
        number = (16 * x[:, 0, 0, 0]).round().long()
        return (self.steps - self.pace * number)[:, None] * F.one_hot(number % 4, 4)


@pytest.mark.parametrize(
    ("pace", "passed", "found"), [(0.004, None, "94% of"), (0.0049, None, "81% of"), (0.006, False, "62% of")]
)
def test_what_learns_slowly_is_left_open(pace, passed, found):
    images = (torch.arange(16) / 16)[:, None, None, None].expand(16, 3, 8, 8).contiguous()
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 4), batch_size=16)
    own = types.SimpleNamespace(train=loader, test=loader, classes=list("abcd"))
    (learnt,) = [check for check in preflight(Slow(pace), own).checks if check.name == "one batch can be learnt"]
    assert learnt.passed is passed and learnt.found.startswith(found)
    assert ("it learns, slowly" in learnt.found) == (passed is None)


def test_what_failed_before_is_the_likely_cause_of_nothing_being_learnt(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    causes = []
    for size in (1.0, 1e4):
        with torch.no_grad():
            model[1].weight.mul_(size)
        found = {check.name: check for check in preflight(model, data).checks}
        causes.append(found["one batch can be learnt"].cause)
    assert found["loss starts near chance"].passed is False and found["one batch can be learnt"].passed is False
    assert causes[0].startswith("the labels do not belong") and causes[1] == "what failed above; mend that first"


def test_a_wrong_number_of_classes(data):
    problems = failed(preflight(create_model("small_resnet", num_classes=7), data))
    assert problems["outputs are logits"].found == "(16, 7) for 16 images of 10 classes"


def test_a_model_that_fails_on_its_first_batch(data):
    report = preflight(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 10)), data)
    (check,) = report.checks
    assert not report.passed and check.name == "a batch goes through the model"
    assert "the model failed on images (16, 3," in check.cause and "cannot be multiplied" in check.cause


@pytest.mark.parametrize(
    ("model", "found", "cause"),
    [
        (
            create_model("vit", size=40),
            "ValueError",
            "the model takes (N, 3, 40, 40); build it with size= of the images",
        ),
        (Picks(), "IndexError", "index 5 is out of bounds"),
    ],
)
def test_a_model_that_refuses_its_first_batch(model, found, cause, data):
    (check,) = preflight(model, data).checks
    assert (check.passed, check.found) == (False, found) and cause in check.cause


def test_a_lazy_model_is_looked_at(data):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    checks = {check.name: check.passed for check in preflight(model, data).checks}
    assert checks["gradients reach every parameter"] is True and model[1].has_uninitialized_params()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"optimizer": torch.optim.SGD(TinyNet().parameters(), lr=0.1)},
            ValueError,
            "holds no parameter of this model",
        ),
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer is a torch optimizer"),
        ({"criterion": nn.CrossEntropyLoss}, TypeError, "criterion is a loss such as"),
        ({"criterion": nn.NLLLoss()}, ValueError, "NLLLoss takes log-probabilities"),
    ],
    ids=["another's", "class", "class of loss", "NLL"],
)
def test_what_fit_would_refuse_is_refused_before(data, given, error, message):
    with pytest.raises(error, match=message):
        preflight(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), data, **given)


@pytest.mark.parametrize(
    ("shuffle", "labels", "passed"),
    [(True, torch.arange(20) // 2, True), (False, torch.arange(20) // 2, False), (False, torch.arange(20) % 10, None)],
)
def test_a_loader_that_begins_with_class_after_class_is_found(shuffle, labels, passed, data):
    dataset = TensorDataset(torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), labels)
    own = types.SimpleNamespace(classes=data.classes, test=data.test, train=DataLoader(dataset, 20, shuffle=shuffle))
    checks = {check.name: check for check in preflight(TinyNet(10), own).checks}
    assert checks["training images come in random order"].passed is passed


def rules_of(report):
    return {check.name.removeprefix("rule: "): check for check in report.checks if check.name.startswith("rule: ")}


def test_the_rules_of_an_assignment_are_checked_before_the_run(data):
    model = create_model("small_resnet", norm="batch")
    state = rng_state()
    report = preflight(
        model, data, "eva6_s8", optimizer=torch.optim.Adam(model.parameters()), criterion=partial(F.cross_entropy)
    )
    found = rules_of(report)
    assert {name: check.passed for name, check in found.items()} == {
        "classes": False,
        "training and test images": False,
        "batch size": False,
        "optimizer": False,
        "loss": True,
        "learning rate": None,
        "normalization": False,
        "training transforms": True,
        "Grad-CAM layers": False,
    }
    assert found["optimizer"].found == "Adam (required: SGD)"
    assert found["learning rate"].found == "give scheduler= as well (required: ReduceLROnPlateau)"
    assert "9 BatchNorm2d (a forward pass: 9 batch_norm); not LayerNorm: layer1.2" in found["normalization"].found
    assert found["Grad-CAM layers"].found.startswith("layer1, layer2, layer3; the network's parts are layer1, layer2")
    assert "FAIL  rule: optimizer" in str(report) and "\n\n" not in str(report)
    assert torch.equal(rng_state()["torch"], state["torch"])


def test_the_rules_of_an_assignment_that_are_kept_pass(data):
    brief = dataclasses.replace(
        BRIEFS["eva6_s8"], classes=None, images=None, batch_size=64, layers=("layer1", "layer3"), least_map=4, depth=10
    )
    model = create_model("small_resnet", norm="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"optimizer": optimizer, "scheduler": ReduceLROnPlateau(optimizer), "criterion": nn.CrossEntropyLoss()}
    report = preflight(model, data, brief, **parts)
    assert report.passed and {check.passed for check in rules_of(report).values()} == {True}
    assert list(rules_of(report)) == [
        "batch size",
        "optimizer",
        "loss",
        "learning rate",
        "convolutions and linear layers",
        "normalization",
        "training transforms",
        "Grad-CAM layers",
        "Grad-CAM maps",
    ]
    with pytest.raises(ValueError, match="unknown brief 'eva6_s'"):
        preflight(model, data, "eva6_s")


def test_a_network_without_maps_leaves_their_rule_open(data):
    brief = Brief("title", "objective", least_map=5)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    assert rules_of(preflight(flat, data, brief))["Grad-CAM maps"].passed is None


def test_loaders_of_ones_own_are_not_looked_into(data):
    own = types.SimpleNamespace(classes=data.classes, train=list(data.train), test=list(data.test))
    report = preflight(create_model("small_resnet"), own)
    assert report.passed and len(report.checks) > 4
    assert [check.name for check in report.checks if check.passed is None] == [
        "train and test share no image",
        "augmentation changes pixels",
    ]


def test_pixels_that_were_not_scaled_are_found(data):
    batches = [(denormalize(images, data.mean, data.std) * 255, labels) for images, labels in data.train]
    own = types.SimpleNamespace(classes=data.classes, train=batches, test=list(data.test))
    check = failed(preflight(create_model("small_resnet"), own))["images are normalized"]
    assert check.found == f"from {batches[0][0][:16].min():.2f} to {batches[0][0][:16].max():.2f}"
    assert "scale them to 0 to 1" in check.cause


def test_of_scaled_pixels_it_is_left_open_whether_they_are_normalized(data):
    batches = [(denormalize(images, data.mean, data.std), labels) for images, labels in data.train]
    own = types.SimpleNamespace(classes=data.classes, train=batches, test=list(data.test))
    check = preflight(create_model("small_resnet"), own).checks[0]
    assert check.name == "images are normalized" and check.passed is None
    assert check.found.endswith(": scaled to 0 to 1, but apparently not normalized by mean and std")


class WithImages(list):
    """Batches, and all images as well, as a loader of one's own may have them."""

    @property
    def images(self):
        return torch.cat([images for images, _ in self])


def test_a_loader_of_ones_own_may_have_images(data):
    own = types.SimpleNamespace(classes=data.classes, train=WithImages(data.train), test=WithImages(data.test))
    assert preflight(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), own).passed


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([(IMAGES, LABELS.clone().index_fill(0, torch.tensor(19), 11))], "has labels from 0 to 11 and the model 10 cl"),
        ([(IMAGES, LABELS.float())], r"the labels of the first batch of data\.train are float32 \(20,\)"),
        (
            [(IMAGES, LABELS, LABELS)],
            r"the first batch of data\.train is a tuple of 3 \(Tensor, Tensor, Tensor\); a loader must yield pairs",
        ),
        ([], r"data\.train is empty; it must yield at least one batch"),
    ],
    ids=["label", "float", "triple", "empty"],
)
def test_what_a_loader_of_ones_own_may_not_yield_is_refused_in_a_sentence(data, train, message):
    own = types.SimpleNamespace(classes=data.classes, train=train, test=list(data.test))
    with pytest.raises(ValueError, match=message):
        preflight(create_model("small_resnet"), own)


def test_data_without_its_parts_and_a_model_that_is_none_are_refused(data):
    own = types.SimpleNamespace(train=[(IMAGES, LABELS)], test=[(IMAGES, LABELS)])
    with pytest.raises(TypeError, match=r"data is what load_data returned, .*; SimpleNamespace has no classes"):
        preflight(create_model("small_resnet"), own)
    with pytest.raises(TypeError, match="; Loader has no train"):
        preflight(create_model("small_resnet"), data.train)
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not function; pass the model itself"):
        preflight(create_model, data)


class Broken(nn.Module):
    """Its first layer gets no gradient, its logits are too large, and dropout goes on in evaluation."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(3072, 64), nn.Linear(64, 10)

    def forward(self, x):
        return 300 * F.dropout(self.fc(self.body(x.flatten(1)).detach()), 0.1)


def test_each_mistake_has_its_line_in_the_table(data):
    transform = Compose(Forgets(), Normalize(data.mean, data.std))
    train = Loader(data.train.images, data.train.labels, transform, batch_size=64, shuffle=True)
    test = Loader(data.train.images[:30], data.train.labels[:30], data.test.transform)
    problems = failed(preflight(Broken(), dataclasses.replace(data, train=train, test=test)))
    assert set(problems) - {"one batch can be learnt"} == {
        "evaluation is repeatable",
        "loss starts near chance",
        "gradients reach every parameter",
        "train and test share no image",
        "Forgets changes pixels",
    }
    assert "not body.weight" in problems["gradients reach every parameter"].found


def test_the_order_of_the_run_that_follows_is_not_drawn_from():
    generator = torch.Generator().manual_seed(1)
    train = DataLoader(random_batches(24), batch_size=8, shuffle=True, generator=generator)
    own = types.SimpleNamespace(train=train, test=DataLoader(random_batches(8), batch_size=8), classes=list("abcd"))
    state = generator.get_state()
    preflight(TinyNet(), own)
    assert torch.equal(generator.get_state(), state)


def test_a_wrapped_model_is_looked_at_without_its_wrapper(data, monkeypatch):
    """On several GPUs the wrapper takes no batch from the CPU."""
    monkeypatch.setattr(nn.DataParallel, "forward", lambda *inputs: pytest.fail("the wrapper is not to run"))
    assert preflight(nn.DataParallel(create_model("small_resnet")), data).passed
