from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from eva_utils.models import resnet18
from eva_utils.models.norms import NORMS
from eva_utils.utils.assignments import BRIEFS, Brief, adapt, find_brief
from eva_utils.utils.brief import Audit, audit
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History, describe_run
from eva_utils.utils.per_image import PerImage
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


def normed(*layers):
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(10))


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


def test_epochs_after_an_earlier_run_are_too_many(data):
    history = record(data, small())
    assert check(history, small(), data, epochs=12).verdict == "pass"
    history.settings["trained_before"] = True
    finding = check(history, small(), data, epochs=12)
    assert (finding.verdict, finding.found) == ("FAIL", "12, after those of an earlier run")


@pytest.mark.parametrize(("required", "verdict"), [(53, "pass"), (53.01, "FAIL")])
def test_the_best_epoch_must_reach_the_accuracy(data, required, verdict):
    finding = check(record(data, small()), small(), data, accuracy=required)
    assert (finding.verdict, finding.found) == (verdict, "53.00% at epoch 3")


@pytest.mark.parametrize(("brief", "required"), [("speedrun", "at least 89.17%"), ("eva6_s9", "at least 90%")])
def test_a_run_that_misses_the_assignments_accuracy_fails(data, brief, required):
    model = small()
    (finding,) = [each for each in audit(brief, record(data, model), model, data).findings if "accuracy" in each.rule]
    assert (finding.required, finding.verdict) == (required, "FAIL")


def test_an_accuracy_of_other_images_is_not_checked(data):
    model = small()
    own = SimpleNamespace(train=data.train, test=data.train, classes=data.classes)
    finding = check(record(data, model), model, own, accuracy=53)
    assert (finding.verdict, finding.found) == ("not checked", "53.00% at epoch 3, of other images than data.test")


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


def own_pipeline(data, *steps):
    return Compose(PerImage(v2.Compose(steps)), Normalize(data.mean, data.std))


def test_a_pipeline_of_ones_own_may_be_the_one_that_is_required(data, loader):
    finding = transforms(data, loader, own_pipeline(data, v2.RandomCrop(32, padding=4), v2.RandomRotation(5)))
    assert finding.verdict == "not checked" and finding.found.startswith("PerImage(Compose( RandomCrop(")
    assert finding.found.endswith("; whether a pipeline of one's own does the same is not known")
    assert transforms(data, loader, own_pipeline(data, v2.Identity())).verdict == "FAIL"


def test_a_pipeline_of_ones_own_is_not_none_at_all(data, loader):
    loader.transform, model = own_pipeline(data, v2.RandomCrop(32, padding=4)), small()
    history = record(data, model)
    assert check(history, model, data, transforms=()).verdict == "FAIL"
    recorded = repr(loader.transform[0])
    assert check(history, model, data, transforms=(recorded,)).verdict == "pass"


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
        (records(*range(20)), [], "FAIL", "20 shown, Grad-CAM explains none"),
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


def test_images_without_gradcam_are_still_said_to_be_shown(data):
    rules = Brief("title", "objective", misclassified=20, layers=("layer4",))
    history, model, shown = record(data, small()), small(), {"misclassified": records(*range(20))}
    found = audit(rules, history, model, data, shown=shown)
    assert (found.findings[0].verdict, found.findings[0].found) == ("not checked", "20 shown, no Grad-CAM was given")
    found = audit(rules, history, model, data, shown=shown, explained={}, maps={})
    assert [finding.found for finding in found.findings] == ["20 shown, Grad-CAM explains none", "none"]
    assert [finding.verdict for finding in found.findings] == ["FAIL", "FAIL"]


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


@pytest.mark.parametrize("brief", ["eva6_s8", "eva8_s7"])
def test_nothing_is_left_changed(data, brief):
    """With batch statistics to spoil, and loaders that draw from torch's own generator."""
    model = normed(nn.BatchNorm2d(8), nn.Dropout(0.5)).train()
    history = record(data, model)
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4)))
    own = SimpleNamespace(train=loader, test=loader, classes=data.classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    audit(brief, history, model, own)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_misspelt_brief_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"unknown brief 'eva7_s8': choose one of .*; did you mean 'eva6_s8'"):
        find_brief("eva7_s8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transforms": "Cutout(16)"}, r"transforms of a brief is a tuple, as \('Cutout\(16\)',\), not a text"),
        ({"accuracy": 0.9}, "accuracy in percent is a number from 1 and below 100, not 0.9"),
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"title": 5}, "title of a brief is a text, not 5"),
        ({"images": 50_000}, r"images of a brief is a tuple, as \(50000, 10000\), not 50000"),
        ({"images": "50000"}, r"images of a brief is a tuple, as \(50000, 10000\), not '50000'"),
        ({"images": (1,)}, r"images of a brief is a tuple, as \(50000, 10000\), not \(1,\)"),
        ({"images": ("a", "b")}, r"images of a brief is a tuple, as \(50000, 10000\), not \('a', 'b'\)"),
        ({"classes": 10}, r"classes of a brief is a tuple, as \('cat', 'dog'\), not 10"),
        ({"layers": 4}, r"layers of a brief is a tuple, as \('layer4',\), not 4"),
        ({"transforms": [Cutout()]}, r"transforms of a brief is a tuple, as \('Cutout\(16, fill=0\)',\), not \[Cutout"),
        ({"model": resnet18}, "model of a brief is the name of a class, as 'ResNet', not <function resnet18"),
        ({"optimizer": torch.optim.SGD}, "optimizer of a brief is the name of a class, as 'SGD', not <class"),
    ],
)
def test_a_brief_of_wrong_types_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        Brief(**{"title": "title", "objective": "objective", **wrong})


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


def test_another_network_keeps_the_options_of_a_brief_that_fit_it():
    options = BRIEFS["eva8_s7"].options
    kept = {**options, "warmup": 0}
    assert adapt(options, {**options, "model": "resnet34"}) == kept
    assert adapt(options, {**options, "model": "vit"}) == {**kept, "standardize": False, "norm": "layer"}
