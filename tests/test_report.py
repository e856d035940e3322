"""The report says what the run recorded."""

import html
import re
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from conftest import TinyNet
from eva_utils import main as engine
from eva_utils.utils.assignments import Brief
from eva_utils.utils.brief import audit
from eva_utils.utils.checkpoint import load_weights
from eva_utils.utils.data import load_data
from eva_utils.utils.gradcam import GradCAM
from eva_utils.utils.page import render, write_page
from eva_utils.utils.predictions import predict
from eva_utils.utils.report import write_report
from eva_utils.utils.runtime import hardware
from eva_utils.utils.verified import load_verified
from reporting import Sign, contents, train_one


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=80, recipe="eva8_s7", batch_size=32)


def test_the_readme_says_what_the_run_recorded(run, data):
    folder, model, history = run
    report = write_report(folder, model, data)
    text = report.path.read_text(encoding="utf-8")
    assert report.path == folder / "README.md" and report.audit is None
    best, last = history.best, history.rows[-1]
    for which, row in (("best", best), ("last", last)):
        assert f"| {which} epoch, {row['epoch']} | {row['test_accuracy']:.2f}% (" in text  # of 80 images
    for row in history.rows:
        assert f"Loss={row['train_loss']:.4f} Batch_id=2 LR=0.05000 Accuracy={row['train_accuracy']:.2f}: 100%|" in text
        correct = round(row["test_accuracy"] * 0.8)
        assert f"loss: {row['test_loss']:.4f}, Accuracy: {correct}/80 ({row['test_accuracy']:.2f}%)" in text
    assert "| seed | 1 of torch before the run, 0 of the order and the augmentation |" in text
    assert "SGD(lr=0.05, momentum=0, weight_decay=0, nesterov=False)" in text
    assert "| training transforms | RandomCrop(padding=4), Cutout(16, fill=0) |" in text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "chosen on the test images themselves" in text


def test_without_torchsummary_there_is_a_report(run, data, undrawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsummary", None)
    text = write_report(run[0], run[1], data).path.read_text(encoding="utf-8")
    assert "summary needs torchsummary" in text and "pip install torchsummary" in text


def test_weights_of_an_earlier_run_are_told(tmp_path, data, undrawn):
    model, _ = train_one(tmp_path / "first", data, epochs=1)
    fit = {"optimizer": SGD(model.parameters(), lr=0.05), "checkpoint": tmp_path / "second", "log": None}
    with pytest.warns(UserWarning, match="weights of an earlier run"):
        engine.fit(model, data.train, data.test, epochs=1, **fit)
    told = "| weights at the start | those of an earlier run |"
    for run, expected in (("first", False), ("second", True)):
        text = write_report(tmp_path / run, model, data).path.read_text(encoding="utf-8")
        assert (told in text) == expected


def test_author_and_remarks_are_the_reports_and_told_from_its_own_words(run, data, undrawn):
    folder, model, _ = run
    remarks = "Found **much**.\n\n## Audit\n\n| all | pass |\n"
    path = write_report(folder, model, data, "eva8_s7", author="Ada *L*", remarks=remarks).path
    text = path.read_text(encoding="utf-8")
    assert "# EVA8 S7: ResNet-18 on CIFAR-10 with Grad-CAM\n\nby Ada &#42;L&#42;\n\n## Contents" in text
    assert "## Remarks\n\n> Found **much**.\n>\n> ## Audit\n>\n> | all | pass |\n\n## Audit\n" in text
    assert "- [Remarks](#remarks)\n- [Audit](#audit)" in text
    with pytest.warns(
        UserWarning, match="the report before this one was given author= and remarks= and brief=; give it"
    ):
        write_report(folder, model, data)
    assert "Ada" not in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError, match="author is a text, not 7"):
        write_report(folder, model, data, author=7)
    with pytest.raises(TypeError, match="remarks is a text, not 8"):
        write_report(folder, model, data, remarks=8)
    report = write_report(folder, model, data, "eva8_s7", author="", remarks=" \n")
    text = report.path.read_text(encoding="utf-8")
    assert "Grad-CAM\n\n## Contents" in text and "Remarks" not in text


def test_every_link_and_picture_is_there(run, data):
    folder, model, _ = run
    text = write_report(folder, model, data).path.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 6 == len(list((folder / "figures").iterdir()))
    assert all((folder / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    headings = {line[3:].lower().replace(" ", "-") for line in text.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == headings - {"contents"}


def test_the_galleries_are_of_the_weights_of_the_headline(run, data):
    folder, model, history = run
    record = write_report(folder, model, data).record
    predictions = predict(load_weights(TinyNet(10), folder, "best"), data.test)
    assert record["results"]["recomputed"] == predictions.accuracy == history.best["test_accuracy"]
    for kind, records in (("misclassified", predictions.wrong(20)), ("correctly classified", predictions.correct(20))):
        gallery = record["galleries"][kind]
        assert [fields["index"] for fields in gallery["records"]] == [record.index for record in records]
        images = torch.stack([record.image for record in records])
        maps = GradCAM(load_weights(TinyNet(10), folder, "best"))(images, [record.predicted for record in records])
        torch.testing.assert_close(gallery["maps"]["conv"], maps["conv"], rtol=0, atol=1e-4)


def test_the_same_record_gives_the_same_bytes(run, data, tmp_path):
    folder, model, _ = run
    write_report(folder, model, data)
    first = contents(folder)
    write_report(folder, model, data)
    assert contents(folder) == first
    (tmp_path / "again").mkdir()
    write_page(tmp_path / "again", render(load_verified(folder / "report.pt")))
    assert contents(tmp_path / "again").items() <= first.items()


def test_a_dark_style_does_not_change_the_figures(run, data):
    import matplotlib.style

    folder, model, _ = run
    write_report(folder, model, data)
    with matplotlib.style.context("dark_background"):
        pages = render(load_verified(folder / "report.pt"))
    assert all((folder / name).read_bytes() == content for name, content in pages.items())


def test_the_model_given_is_left_as_it_was(run, data):
    folder, _, _ = run
    other = TinyNet(10).train()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    write_report(folder, other, data)
    assert other.training and all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_broken_rule_is_in_the_report(run, data, undrawn):
    folder, model, _ = run
    report = write_report(folder, model, data, Brief("title", "objective", epochs=3, batch_size=32))
    text = report.path.read_text(encoding="utf-8")
    assert "| epochs | 3 | 2 | **FAIL** |" in text and "| batch size | 32 | 32 | pass |" in text
    assert "**Rules of the assignment that this run breaks: epochs**" in text and not report.audit.passed
    assert "1 of 2 rules pass." in text and "FAIL         epochs      2 (required: 3)" in repr(report)


def test_chosen_layers_are_explained(run, data, undrawn):
    folder, model, _ = run
    brief = Brief("title", "objective", layers=("conv", "norm"), misclassified=20, correct=5, least_map=5)
    report = write_report(folder, model, data, brief)
    assert report.record["maps"] == {"conv": [32, 32], "norm": [32, 32]} and report.audit.passed
    assert "at each layer" in report.path.read_text(encoding="utf-8")


def test_a_layer_that_was_searched_for_is_said_to_be_and_the_models_own_is_not(run, data, undrawn):
    folder, model, _ = run
    searched = "The layer is the deepest whose map has at least 5x5 pixels."
    assert searched in write_report(folder, model, data).path.read_text(encoding="utf-8")
    model.cam_layer = "norm"
    report = write_report(folder, model, data)
    assert list(report.record["maps"]) == ["norm"] and searched not in report.path.read_text(encoding="utf-8")


def test_layers_the_model_lacks_are_left_out_and_fail(run, data, undrawn):
    folder, model, _ = run
    report = write_report(folder, model, data, Brief("title", "objective", layers=("conv", "layer4")))
    assert list(report.record["maps"]) == ["conv"] and not report.audit.passed


def test_a_held_out_split_that_chose_the_epoch_is_named(tmp_path, undrawn):
    data = load_data("shapes", limit=80, validation=40)
    model, history = train_one(tmp_path / "run", data, data.validation)
    report = write_report(tmp_path / "run", model, data)
    results = report.record["results"]
    for which in ("best", "last"):
        predictions = predict(load_weights(TinyNet(10), tmp_path / "run", which), data.test)
        assert results[which]["accuracy"] == predictions.accuracy
    text = report.path.read_text(encoding="utf-8")
    assert f"chosen on 40 held-out training images, of which it gets {history.best['test_accuracy']:.2f}%" in text
    correct = round(0.4 * history.rows[0]["test_accuracy"])
    assert f"Validation set: Average loss: {history.rows[0]['test_loss']:.4f}, Accuracy: {correct}/40" in text


def test_no_mistakes_to_show(tmp_path, own_data, monkeypatch):
    model = Sign()
    monkeypatch.setattr("eva_utils.utils.report.summary", Mock(side_effect=ValueError("no list of its layers")))
    fit = {"epochs": 1, "optimizer": SGD(model.parameters(), lr=1e-9), "checkpoint": tmp_path / "run", "log": None}
    history = engine.fit(model, own_data.train, own_data.test, **fit)
    assert history.best["test_accuracy"] == 100
    report = write_report(tmp_path / "run", model, own_data, Brief("title", "objective", misclassified=20))
    text = report.path.read_text(encoding="utf-8")
    assert "There are none: no test image was misclassified." in text
    assert "| misclassified images | 20, and Grad-CAM of the same | there is none to show | pass |" in text
    assert not (tmp_path / "run" / "figures" / "misclassified.png").exists()
    assert "training transforms | not recorded" in text and "no list of its layers" in text


def test_classes_may_be_numbers_and_a_loaders_generator_stays_as_it_was(tmp_path, own_data, monkeypatch):
    monkeypatch.setattr("eva_utils.utils.page._figures", lambda record: {})  # which take seconds to draw
    generator, model = torch.Generator().manual_seed(1), Sign()
    own_data.test = DataLoader(own_data.test.dataset, batch_size=6, generator=generator)
    own_data.classes = range(2)
    fit = {"epochs": 1, "optimizer": SGD(model.parameters(), lr=1e-9), "checkpoint": tmp_path / "run", "log": None}
    history = engine.fit(model, own_data.train, own_data.test, **fit)
    state = generator.get_state()
    audit(Brief("title", "objective", norm="LayerNorm"), history, model, own_data)
    assert torch.equal(generator.get_state(), state)
    report = write_report(tmp_path / "run", model, own_data)
    assert torch.equal(generator.get_state(), state)
    assert "| classes | 0, 1 |" in report.path.read_text(encoding="utf-8")


def test_a_compiled_model_has_a_report_and_plain_weights(tmp_path, data, undrawn):
    torch.manual_seed(1)
    model = torch.compile(TinyNet(10), backend="eager")
    fit = {"optimizer": SGD(model.parameters(), lr=0.05), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, data.train, data.test, epochs=1, **fit)
    assert set(load_verified(tmp_path / "run" / "best.pt")) == set(TinyNet(10).state_dict())
    write_report(tmp_path / "run", model, data)
    load_weights(TinyNet(10), tmp_path / "run")


def test_a_model_without_a_map_has_a_report_without_gradcam(tmp_path, data, undrawn):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    fit = {"optimizer": SGD(model.parameters(), lr=0.01), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, data.train, data.test, epochs=1, **fit)
    with pytest.warns(UserWarning, match="the report is without Grad-CAM: no convolution gives .*; choose layers="):
        report = write_report(tmp_path / "run", model, data, Brief("t", "o", misclassified=20, least_map=5))
    text = report.path.read_text(encoding="utf-8")
    assert text.count("There is none: no convolution gives a map of at least 5x5.") == 2
    assert [finding.verdict for finding in report.audit.findings] == ["FAIL", "not checked"]


def tokens_as_map(output):
    return output[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


def test_a_transformer_of_ones_own_is_explained_by_the_layer_and_reshape_given(tmp_path, data, undrawn):
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # as it comes it is 0, and so would be every map
    fit = {"optimizer": SGD(model.parameters(), lr=0.01), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, data.train, data.test, epochs=1, **fit)
    explain = {"layers": "encoder.layers.encoder_layer_1.ln_1", "reshape": tokens_as_map}
    record = write_report(tmp_path / "run", model, data, **explain).record
    assert record["maps"] == {explain["layers"]: [4, 4]}
    wrong = predict(load_weights(model, tmp_path / "run"), data.test).wrong(20)
    maps = GradCAM(model, **explain)(torch.stack([record.image for record in wrong]), [r.predicted for r in wrong])
    shown = record["galleries"]["misclassified"]["maps"]
    torch.testing.assert_close(shown[explain["layers"]], maps[explain["layers"]], rtol=0, atol=1e-4)
    assert maps[explain["layers"]].any()
    with pytest.raises(ValueError, match=r"'heads' gives .* and not a map"):
        write_report(tmp_path / "run", model, data, layers=["heads"])
    with pytest.raises(ValueError, match="unknown layer 'layer9'"):
        write_report(tmp_path / "none", model, data, layers=["layer9"])


def test_of_ones_own_loaders_is_said_what_is_known(tmp_path, own_data, undrawn):
    model = Sign()
    fit = {"epochs": 1, "optimizer": SGD(model.parameters(), lr=1e-9), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, own_data.train, own_data.test, **fit)
    text = write_report(tmp_path / "run", model, own_data).path.read_text(encoding="utf-8")
    assert "| data | images: 12 train, 12 test |" in text and "fingerprint" not in text
    assert "chosen on the test images themselves, so its accuracy is a little optimistic" in text


def test_schedules_in_a_schedule_are_named(tmp_path, data, undrawn):
    model = TinyNet(10)
    optimizer = SGD(model.parameters(), lr=0.1)
    parts = [LinearLR(optimizer, 0.5, total_iters=1), StepLR(optimizer, 2)]
    options = {"optimizer": optimizer, "scheduler": SequentialLR(optimizer, parts, [1])}
    engine.fit(model, data.train, data.test, epochs=1, checkpoint=tmp_path / "run", log=None, **options)
    text = write_report(tmp_path / "run", model, data).path.read_text(encoding="utf-8")
    (line,) = [html.unescape(line) for line in text.splitlines() if line.startswith("| learning rate schedule")]
    assert line.startswith("| learning rate schedule | SequentialLR(milestones=[1]) of LinearLR(start_factor=0.5, ")
    assert ", StepLR(step_size=2, gamma=0.1" in line


def test_own_loaders_held_out_split_is_known_by_its_size(tmp_path, own_data, undrawn):
    images, labels = own_data.train.dataset.tensors
    own_data.validation = DataLoader(TensorDataset(images[:4], labels[:4]), batch_size=4)
    model = Sign()
    fit = {"optimizer": SGD(model.parameters(), lr=1e-9), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, own_data.train, own_data.validation, epochs=1, **fit)
    results = write_report(tmp_path / "run", model, own_data).record["results"]
    assert (results["split"], results["chosen_on"], results["samples"]) == ("validation", 4, 12)


def test_a_run_that_went_on_elsewhere_names_both_machines(tmp_path, data, monkeypatch, undrawn):
    train_one(tmp_path / "run", data, epochs=1)
    elsewhere = {**hardware(torch.device("cpu")), "machine": "Another", "date": "2030-01-01"}
    monkeypatch.setattr("eva_utils.main.hardware", lambda device: elsewhere)
    model, _ = train_one(tmp_path / "run", data, epochs=3, resume="auto")
    text = write_report(tmp_path / "run", model, data).path.read_text(encoding="utf-8")
    assert "| after epoch 1 on | 2030-01-01, Another, " in text and "| trained on | " in text
    monkeypatch.setattr("eva_utils.main.hardware", lambda device: {**elsewhere, "date": "2031-01-01"})
    train_one(tmp_path / "run", data, epochs=3, resume="auto")  # loads the weights and trains nothing
    write_report(tmp_path / "run", model, data)
    assert "2031-01-01" not in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
