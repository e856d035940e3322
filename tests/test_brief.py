import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models as tv

from eva_utils.models import create_model, resnet18, resnet34
from eva_utils.models.norms import NORMS
from eva_utils.models.resnet import StandardizedConv2d
from eva_utils.utils import rules
from eva_utils.utils.assignments import BRIEFS, Brief, find_brief
from eva_utils.utils.brief import Audit, audit
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History, describe_run
from eva_utils.utils.predictions import Record, Records
from eva_utils.utils.rules import Finding
from eva_utils.utils.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomRotate

LOSSES = [1.0, 0.9, 0.95, 0.94, 0.93, 0.92, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85]


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


@pytest.fixture
def loader(data, monkeypatch):
    """The training loader, whose transform a test may replace."""
    monkeypatch.setattr(data.train, "transform", data.train.transform)
    return data.train


def small(norm="layer"):
    return nn.Sequential(nn.Conv2d(3, 8, 3), NORMS[norm](8), nn.Flatten(), nn.LazyLinear(10))


def record(data, model, *, scheduler=None, warmup=0, lr=0.1, losses=LOSSES):
    """What `fit` would have recorded with these test losses; the accuracies go their own way."""
    model(torch.zeros(2, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = scheduler(optimizer) if scheduler else ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    settings = describe_run(model, optimizer, scheduler, nn.CrossEntropyLoss(), data.train, data.test)
    settings["warmup"] = warmup
    rows = []
    for epoch, loss in enumerate(losses, 1):
        rate = lr * epoch / warmup if epoch < warmup else optimizer.param_groups[0]["lr"]
        accuracy = 50.0 + epoch % 4
        rows.append({"epoch": epoch, "lr": rate, "test_loss": loss, "test_accuracy": accuracy})
        if isinstance(scheduler, ReduceLROnPlateau) and epoch > warmup:
            scheduler.step(loss if scheduler.mode == "min" else accuracy)
    return History(rows, settings)


def only(found: Audit) -> Finding:
    (finding,) = found.findings
    return finding


def check(history, model, data, **rules):
    return only(audit(Brief("title", "objective", **rules), history, model, data))


def test_plateau_is_replayed_from_the_record(data):
    history = record(data, small())
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    # Worse than 0.9 in epochs 3, 4 and 5, and than 0.8 in 8, 9 and 10: the epochs after them run at half the rate.
    assert [row["lr"] for row in history.rows] == [0.1] * 5 + [0.05] * 5 + [0.025] * 2
    assert finding.verdict == "pass" and finding.found.startswith("0.1, cut from epoch 6, 11 on; replayed")


@pytest.mark.parametrize(
    ("rates", "verdict", "found"),
    [
        ([0.1, 0.4, 0.3, 0.1], "pass", "0.1 at first, 0.4 after epoch 2, 0.1 at last"),
        ([0.1, 0.1, 0.1, 0.1], "FAIL", "0.1 at first, 0.1 after epoch 1, 0.1 at last"),
        ([0.1, 0.3, 0.4, 0.1], "FAIL", "0.1 at first, 0.4 after epoch 3, 0.1 at last"),
        ([0.1, 0.4, 0.3, 1e-5], "FAIL", "0.1 at first, 0.4 after epoch 2, 1e-05 at last"),
    ],
)
def test_a_one_cycle_peaks_where_it_should_and_is_not_annihilated(rates, verdict, found, data):
    history = record(data, small(), losses=LOSSES[:4])
    for row, rate in zip(history.rows, rates, strict=True):
        row["lr"] = rate
    finding = check(history, small(), data, peak_epoch=2)
    assert (finding.rule, finding.verdict, finding.found) == ("one cycle", verdict, found)


def test_another_network_and_another_split_are_found(data):
    finding = only(audit(Brief("title", "objective", model="ViT"), record(data, small()), small(), data))
    assert (finding.rule, finding.found, finding.verdict) == ("network", "Sequential", "FAIL")
    again = load_data("shapes", test_share=1 / 6, limit=70)
    finding = check(record(again, small()), small(), again, images=(70, 70))
    assert (finding.found, finding.verdict) == ("70, 70, split anew", "FAIL")
    assert check(record(data, small()), small(), data, images=(70, 70)).verdict == "pass"


def test_a_rate_changed_by_hand_is_found(data):
    history = record(data, small())
    history.rows[3]["lr"] = 0.07
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert finding.verdict == "FAIL" and finding.found == "epoch 4 ran at 0.07; ReduceLROnPlateau says 0.1"


def test_a_cut_that_did_not_happen_is_found(data):
    history = record(data, small())
    for row in history.rows:
        row["lr"] = 0.1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").found.startswith("epoch 6 ran at 0.1;")


def test_a_declared_warmup_is_not_the_schedules(data):
    history = record(data, small(), warmup=3)
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert finding.verdict == "pass" and "after a warmup of 3 epochs" in finding.found
    history.settings["warmup"] = 0
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "FAIL"


PLATEAUS = {
    "accuracy": {"mode": "max", "patience": 1},
    "threshold": {"threshold": 0.2, "patience": 1},
    "absolute": {"threshold": 0.15, "threshold_mode": "abs", "patience": 1},
    "cooldown": {"patience": 0, "cooldown": 3},
    "floor": {"patience": 0, "min_lr": 0.03},
}


@pytest.mark.parametrize("name", PLATEAUS)
def test_each_option_of_the_plateau_matters_in_its_replay(data, name):
    history = record(data, small(), scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, **PLATEAUS[name]))
    assert len({row["lr"] for row in history.rows}) > 1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "pass"
    for option, plain in {"mode": "min", "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0}.items():
        if option in PLATEAUS[name]:
            history.settings["scheduler"][option] = plain
            assert check(history, small(), data, scheduler="ReduceLROnPlateau").verdict == "FAIL"
            break


def test_a_warmup_that_is_the_whole_run_fails(data):
    history = record(data, small(), warmup=12)
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert (finding.verdict, finding.found) == ("FAIL", "the warmup takes all of the 12 epochs")


def test_a_rate_within_the_warmup_is_checked_too(data):
    history = record(data, small(), warmup=3)
    history.rows[0]["lr"] = 0.1
    assert check(history, small(), data, scheduler="ReduceLROnPlateau").found.startswith("epoch 1 ran at 0.1;")


def test_another_required_schedule_is_compared_by_its_class(data):
    history = record(data, small(), scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9))
    assert check(history, small(), data, scheduler="OneCycleLR").verdict == "pass"
    assert check(record(data, small()), small(), data, scheduler="OneCycleLR").verdict == "FAIL"


def test_one_cycle_is_not_plateau(data):
    history = record(data, small(), scheduler=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9))
    finding = check(history, small(), data, scheduler="ReduceLROnPlateau")
    assert (finding.verdict, finding.found) == ("FAIL", "OneCycleLR")


class Sneaky(nn.Module):
    """Normalizes by batch statistics without a module for it, in training only."""

    def forward(self, x):
        return F.batch_norm(x, torch.zeros(8), torch.ones(8), training=True) if self.training else x


class OwnLayerNorm(nn.Module):
    """A LayerNorm of one's own, by torch's function."""

    def forward(self, x):
        return F.layer_norm(x, x.shape[1:])


def normed(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(10))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([nn.GroupNorm(1, 8)], "1 GroupNorm of one group (a forward pass: 1 group_norm of one group)"),
        ([NORMS["channel"](8)], "1 ChannelLayerNorm (a forward pass: 1 layer_norm)"),
        ([OwnLayerNorm()], "no normalization module (a forward pass: 1 layer_norm)"),
    ],
)
def test_layer_norm_alone_passes(data, layers, found):
    model = normed(*layers)
    finding = check(record(data, model), model, data, norm="LayerNorm")
    assert (finding.verdict, finding.found) == ("pass", found)


def test_a_hidden_batch_norm_is_found(data):
    model = resnet18(norm="layer")
    model.layer2[0].shortcut[1] = nn.BatchNorm2d(128)
    finding = check(record(data, model), model, data, norm="LayerNorm")
    assert finding.verdict == "FAIL"
    assert finding.found.startswith("19 GroupNorm of one group, 1 BatchNorm2d (a forward pass: ")
    assert finding.found.endswith("; not LayerNorm: layer2.0.shortcut.1")


@pytest.mark.parametrize(
    "layers",
    [
        [nn.BatchNorm2d(8)],
        [nn.GroupNorm(4, 8)],
        [nn.InstanceNorm2d(8)],
        [nn.GroupNorm(1, 8), Sneaky()],
        [nn.GroupNorm(1, 8), nn.LocalResponseNorm(2)],
        [StandardizedConv2d(8, 8, 3)],
        [],
    ],
    ids=["batch", "group", "instance", "functional", "response", "weights", "none"],
)
def test_other_norms_and_none_fail(data, layers):
    model = normed(*layers)
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "FAIL"


def test_batches_of_one_image_are_enough(data):
    """Batch normalization of 1x1 maps refuses to train on a single image."""
    model = nn.Sequential(nn.Conv2d(3, 8, 32), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    single = DataLoader(TensorDataset(torch.randn(3, 3, 32, 32), torch.arange(3)), batch_size=1)
    own = SimpleNamespace(train=data.train, test=single, classes=data.classes)
    assert check(record(data, model), model, own, norm="BatchNorm").verdict == "pass"


def test_a_layer_norm_that_never_runs_does_not_count(data):
    model = normed()
    model[0].idle = nn.LayerNorm(8)
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "FAIL"


@pytest.mark.parametrize(("norm", "layer"), [("BatchNorm", nn.BatchNorm2d(8)), ("GroupNorm", nn.GroupNorm(4, 8))])
def test_other_required_norms(data, norm, layer):
    model = normed(layer)
    assert check(record(data, model), model, data, norm=norm).verdict == "pass"
    assert check(record(data, small()), small(), data, norm="BatchNorm").verdict == "FAIL"


def test_an_unknown_norm_is_refused_when_the_brief_is_made():
    with pytest.raises(ValueError, match=r"unknown normalization 'Layernorm': .*did you mean 'LayerNorm'"):
        Brief("title", "objective", norm="Layernorm")


def test_a_reparametrized_weight_is_no_normalization_layer(data):
    model = small()
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    assert check(record(data, model), model, data, norm="LayerNorm").verdict == "pass"


@pytest.mark.parametrize(("norm", "required"), [("batch", "BatchNorm"), ("layer", "LayerNorm")])
def test_standardized_weights_are_named_and_are_no_normalization_layer(data, norm, required):
    model = create_model("speed_resnet", norm=norm, standardize=True)
    finding = check(record(data, model), model, data, norm=required)
    assert finding.verdict == "pass"
    assert "6 layer_norm of weights" in finding.found


class Idle(Cutout):
    """Computes the squares and returns the images as they were."""

    def __repr__(self):
        return "Cutout(16, fill=0)"

    def forward(self, images, generator=None):
        super().forward(images, generator)
        return images


class Drops(Compose):
    """Runs every step and forgets the result of the last, as the first assignment's own pipeline did."""

    def forward(self, images, generator=None):
        for step in list(self)[:-1]:
            images = step(images, generator)
        self[-1](images, generator)
        return images


def transforms(data, loader, transform):
    loader.transform = transform
    model = small()
    return check(record(data, model), model, data, transforms=BRIEFS["eva6_s8"].transforms)


def test_the_required_transforms_pass(data, loader):
    finding = transforms(data, loader, loader.transform)
    assert finding.verdict == "pass"
    assert finding.found.startswith("RandomCrop(padding=4), RandomRotate(5), Cutout(16, fill=0); RandomCrop: ")


@pytest.mark.parametrize("kind", [Idle, Drops])
def test_a_cutout_that_does_nothing_fails(data, loader, kind):
    steps = [RandomCrop(), RandomRotate(), Normalize(data.mean, data.std), Cutout()]
    if kind is Idle:
        steps[-1] = Idle()
    finding = transforms(data, loader, (Drops if kind is Drops else Compose)(*steps))
    assert finding.verdict == "FAIL" and "0% of 64 images changed" in finding.found


def test_a_flip_is_one_too_many(data, loader):
    finding = transforms(data, loader, Compose(RandomHorizontalFlip(), *loader.transform))
    assert finding.verdict == "FAIL" and finding.found.startswith("RandomHorizontalFlip(p=0.5), RandomCrop")


def test_a_brief_without_transforms_asks_for_none(data, loader):
    loader.transform = Compose(Normalize(data.mean, data.std))
    model = small()
    finding = check(record(data, model), model, data, transforms=())
    assert (finding.required, finding.verdict) == ("none", "pass")


def test_another_order_and_another_size_fail(data, loader):
    crop, turn, normalize, cut = loader.transform
    assert transforms(data, loader, Compose(turn, crop, normalize, cut)).verdict == "FAIL"
    assert transforms(data, loader, Compose(crop, turn, normalize, Cutout(8))).verdict == "FAIL"


def test_transforms_changed_after_training_fail(data, loader):
    model = small()
    history = record(data, model)
    loader.transform = Compose(*list(loader.transform)[:-1])
    finding = check(history, model, data, transforms=BRIEFS["eva6_s8"].transforms)
    assert finding.verdict == "FAIL" and "data.train now has" in finding.found


def test_a_loader_without_a_record_is_not_checked(data):
    model = small()
    history = record(data, model)
    del history.settings["train_loader"]["transform"]
    assert check(history, model, data, transforms=("Cutout(16, fill=0)",)).verdict == "not checked"


def records(*indices, total=100, predicted=1):
    said = [Record(index, torch.zeros(3, 8, 8), 0, predicted, 0.9) for index in indices]
    return Records(said, "misclassified", 20, total)


@pytest.mark.parametrize(
    ("shown", "explained", "verdict", "found"),
    [
        (records(*range(20)), records(*range(20)), "pass", "20; Grad-CAM of the same indices"),
        (records(*range(20)), records(*range(1, 21)), "FAIL", "20; Grad-CAM of other indices"),
        (records(*range(20)), list(range(20)), "pass", "20; Grad-CAM of the same indices"),
        (records(1, 2, total=2), records(1, 2), "pass", "2, all there are; Grad-CAM of the same indices"),
        (records(1, 2), records(1, 2), "FAIL", "2; Grad-CAM of the same indices"),
        (records(*[7] * 20), records(*[7] * 20), "FAIL", "the same image more than once"),
        (records(7, predicted=0), records(7, predicted=0), "FAIL", "#7 is not misclassified"),
        (records(), records(), "not checked", "there is none to show"),
        (records(total=0), records(total=0), "pass", "there is none to show"),
    ],
)
def test_galleries(data, shown, explained, verdict, found):
    rules = Brief("title", "objective", misclassified=20)
    given = {"shown": {"misclassified": shown}, "explained": {"misclassified": explained}}
    finding = only(audit(rules, record(data, small()), small(), data, **given))
    assert (finding.verdict, finding.found) == (verdict, found)


def test_what_no_evidence_was_given_for_is_not_checked(data):
    rules = Brief(
        "title", "objective", misclassified=20, correct=20, layers=("layer4",), least_map=5, plain_notebook=True
    )
    found = audit(rules, record(data, small()), small(), data)
    assert [finding.verdict for finding in found.findings] == ["not checked"] * 5 and not found.passed


def test_map_sizes_and_layers(data):
    rules = Brief("title", "objective", layers=("layer4",), least_map=5)
    history, model = record(data, small()), small()
    found = audit(rules, history, model, data, maps={"layer4": (4, 4)})
    assert [finding.verdict for finding in found.findings] == ["pass", "FAIL"]
    assert found.findings[1].found == "layer4 4x4"
    assert audit(rules, history, model, data, maps={"layer4": (5, 6)}).passed


@pytest.mark.parametrize(("build", "found"), [(resnet18, 18), (resnet34, 34), (tv.resnet18, 18), (tv.resnet50, 50)])
def test_depth_counts_layers_with_weights(data, build, found):
    model = build(num_classes=10)
    finding = check(record(data, model), model, data, depth=18)
    assert (finding.verdict, finding.found) == ("pass" if found == 18 else "FAIL", f"{found} in ResNet")


class Bottlenecks(nn.Module):
    """Seven weighted layers, and four 1x1 convolutions in shortcuts, of which one has this name."""

    def __init__(self, name):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.residual = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1))
        self.output_projection = nn.Conv2d(8, 8, 1)
        self.skips = nn.ModuleDict({name: nn.Conv2d(8, 8, 1)})
        self.residual_1 = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3), "shortcut": nn.Sequential(nn.Conv2d(8, 8, 1))})
        self.shortcut = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.fc = nn.Linear(8, 10)


@pytest.mark.parametrize("name", ["shortcut", "shortcut_conv", "skip_1"])
def test_depth_leaves_out_what_is_called_a_shortcut_and_is_one(data, name):
    assert rules.depth(7, Bottlenecks(name)).found == "7 in Bottlenecks"


def notebook(tmp_path, *cells):
    kinds = [{"cell_type": "markdown", "source": ["def in_text(): pass"]}]
    kinds += [{"cell_type": "code", "source": [line + "\n" for line in cell.splitlines()]} for cell in cells]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": kinds}))
    return tmp_path / "a.ipynb"


def plain(data, path):
    rules = Brief("title", "objective", plain_notebook=True)
    return only(audit(rules, record(data, small()), small(), data, notebook=path))


def test_a_plain_notebook_passes(data, tmp_path):
    cells = ["!git clone x\n%pip install y\nimport torch", "files = !ls", "print?", "%%bash\ncd x && ls", "!a \\\n b"]
    finding = plain(data, notebook(tmp_path, *cells))
    assert (finding.verdict, finding.found) == ("pass", "a.ipynb: 5 code cells, none defines any")


def test_definitions_in_a_notebook_are_named(data, tmp_path):
    cells = ["if True:\n    def sneaky(): pass", "class Net: pass", "%%capture\ndef quiet(): pass", "f = lambda x: x"]
    finding = plain(data, notebook(tmp_path, *cells))
    assert (finding.verdict, finding.found) == ("FAIL", "a.ipynb: defines sneaky, Net, quiet, lambda")


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [{}]}'])
def test_a_broken_notebook_is_named(data, tmp_path, content):
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"a\.ipynb cannot be read as a notebook"):
        plain(data, tmp_path / "a.ipynb")


def test_numbers_and_names(data):
    model = small()
    rules = {"epochs": 40, "batch_size": 128, "optimizer": "SGD", "criterion": "CrossEntropyLoss", "images": (70, 70)}
    found = audit(Brief("title", "objective", **rules), record(data, model), model, data)
    assert {finding.rule: finding.verdict for finding in found.findings} == {
        "training and test images": "pass",
        "epochs": "FAIL",
        "batch size": "pass",
        "optimizer": "pass",
        "loss": "pass",
    }
    assert "FAIL         epochs" in str(found) and "12 (required: 40)" in str(found)


def test_nothing_is_left_changed(data):
    """With batch statistics to spoil, and loaders that draw from torch's own generator."""
    model = normed(nn.BatchNorm2d(8), nn.Dropout(0.5)).train()
    history = record(data, model)
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4)))
    own = SimpleNamespace(train=loader, test=loader, classes=data.classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    audit("eva6_s8", history, model, own)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_misspelt_brief_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"unknown brief 'eva7_s8': choose one of .*; did you mean 'eva6_s8'"):
        find_brief("eva7_s8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transforms": "Cutout(16)"}, r"transforms of a brief is a tuple, as \('Cutout\(16\)',\), not a text"),
        ({"epochs": "2"}, "epochs is a whole number from 1 up, not '2'"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' of a brief: torch's class is called 'SGD'"),
        ({"scheduler": "OneCycle"}, "scheduler 'OneCycle' of a brief: torch's class is called 'OneCycleLR'"),
        ({"scheduler": "one_cycle"}, "scheduler 'one_cycle' of a brief: torch's class is called 'OneCycleLR'"),
        (
            {"criterion": "cross_entropy"},
            "criterion 'cross_entropy' of a brief: torch's class is called 'CrossEntropyLoss'",
        ),
        ({"scheduler": "onecyclelr"}, "scheduler 'onecyclelr' of a brief: torch's class is called 'OneCycleLR'"),
        ({"criterion": "nn.CrossEntropyLoss()"}, "torch's class is called 'CrossEntropyLoss'"),
        ({"title": " "}, "a brief needs a title and an objective"),
    ],
)
def test_a_brief_that_cannot_be_meant_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Brief(**{"title": "title", "objective": "objective", **wrong})


@pytest.mark.parametrize("own", [{"criterion": "FocalLoss"}, {"optimizer": "Lion"}, {"scheduler": "Counter"}])
def test_a_brief_may_name_a_class_of_the_students_own(own, data):
    found = only(audit(Brief("title", "objective", **own), record(data, small()), small(), data))
    assert found.verdict == "FAIL"


def test_lists_in_a_brief_are_as_good_as_tuples(data):
    model = small()
    found = audit(Brief("t", "o", classes=list(data.classes), images=[70, 70]), record(data, model), model, data)
    assert found.passed


def test_a_class_itself_is_refused():
    with pytest.raises(TypeError, match="optimizer of a brief is the name of a class, as 'SGD', not <class"):
        Brief("title", "objective", optimizer=torch.optim.SGD)


def test_something_else_than_a_brief_is_refused():
    with pytest.raises(TypeError, match="brief is the name of an assignment, as 'eva6_s8', or a Brief, not list"):
        find_brief(["eva6_s8"])
    assert len({Brief("title", "objective"), Brief("title", "objective")}) == 1


def test_cross_entropy_by_its_function_is_the_same_loss(data):
    history = record(data, small())
    history.settings["criterion"] = {"class": "cross_entropy"}
    assert check(history, small(), data, criterion="CrossEntropyLoss").verdict == "pass"


def test_a_history_without_an_epoch_is_refused(data):
    with pytest.raises(ValueError, match="no epoch has finished"):
        audit("eva6_s8", History(), small(), data)


@pytest.mark.parametrize("name", BRIEFS)
def test_briefs_set_options_the_command_line_has(name):
    from conftest import ROOT

    source = (ROOT / "eva_utils" / "utils" / "options.py").read_text(encoding="utf-8")
    for option in BRIEFS[name].options:
        assert f'"--{option.replace("_", "-")}"' in source
