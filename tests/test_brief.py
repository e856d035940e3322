"""Briefs, and the audit of a run by their other rules."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from audited import check, normed, only, record, small
from eva_utils.models import resnet18
from eva_utils.utils.assignments import BRIEFS, Brief, adapt, find_brief
from eva_utils.utils.brief import audit
from eva_utils.utils.cutout import Cutout
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History
from eva_utils.utils.options import make_parser
from eva_utils.utils.predictions import Record, Records


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=70, recipe="eva6_s8")


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


def test_something_else_than_a_history_or_data_is_refused(data):
    model = small()
    with pytest.raises(TypeError, match="history is what fit returned, not list"):
        audit("eva6_s8", record(data, model).rows, model, data)
    with pytest.raises(TypeError, match="data is what load_data returned; Loader has no test"):
        audit("eva6_s8", record(data, model), model, data.test)
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not str"):
        audit("eva6_s8", record(data, model), "resnet18", data)


@pytest.mark.parametrize("name", BRIEFS)
def test_briefs_set_options_the_command_line_has(name):
    assert set(BRIEFS[name].options) <= set(vars(make_parser().parse_args([])))


def test_another_network_keeps_the_options_of_a_brief_that_fit_it():
    options = BRIEFS["eva8_s7"].options
    kept = {**options, "warmup": 0}
    assert adapt(options, {**options, "model": "resnet34"}) == kept
    assert adapt(options, {**options, "model": "vit"}) == {**kept, "standardize": False, "norm": "layer"}
