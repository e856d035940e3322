"""Every option of the command line reaches the part of the run that it is of; nothing is trained."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import eva_utils
from command import run
from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils.data import load_data
from eva_utils.utils.history import History
from eva_utils.utils.transforms import test_transform as plain_transform
from eva_utils.utils.verified import save_verified


@pytest.fixture
def given(image_folder, tmp_path, monkeypatch):
    """Return what `fit` is given by a command line about ten images of two classes, each of 10x10 pixels."""
    got = {}

    def fit(model, train, tested, **options):
        got.update(options, model=model, train=train, tested=tested)
        raise KeyboardInterrupt

    def of(*arguments):
        got.clear()
        options = ["--data", image_folder, "--device", "cpu", "--out", tmp_path / "run", *arguments]
        printed = run(*options, code=130)
        assert got, printed
        return dict(got)

    monkeypatch.setattr(eva_utils, "fit", fit)
    return of


def test_the_options_of_a_run_reach_fit(given, tmp_path):
    """Those of the plateau; each is another than its default."""
    got = given(
        "--epochs", 7, "--optimizer", "sgd", "--lr", 0.3, "--momentum", 0.5, "--weight-decay", 0.01, "--nesterov",
        "--factor", 0.7, "--patience", 5, "--threshold", 0.2, "--label-smoothing", 0.2, "--warmup", 2, "--ema", 0.9,
        "--clip", 3, "--compile", "--precision", "float32", "--mirror", tmp_path / "mirror",
    )  # fmt: skip
    expected = {
        "epochs": 7, "warmup": 2, "ema": 0.9, "clip": 3.0, "compile": True, "precision": "float32", "device": "cpu",
        "mirror": tmp_path / "mirror", "checkpoint": tmp_path / "run", "resume": False,
    }  # fmt: skip
    assert {name: got[name] for name in expected} == expected
    optimizer, plateau, loss = got["optimizer"], got["scheduler"], got["criterion"]
    weights, others = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD and weights["fused"] is None
    assert (weights["lr"], weights["momentum"], weights["nesterov"]) == (0.3, 0.5, True)
    assert (weights["weight_decay"], others["weight_decay"]) == (0.01, 0)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in got["model"].parameters()}
    assert type(plateau) is torch.optim.lr_scheduler.ReduceLROnPlateau and plateau.optimizer is optimizer
    assert (plateau.factor, plateau.patience, plateau.threshold) == (0.7, 5, 0.2)
    assert type(loss) is nn.CrossEntropyLoss and loss.label_smoothing == 0.2


def test_the_options_of_one_cycle_reach_its_rates(given):
    cycle = ["--scheduler", "one_cycle", "--epochs", 8, "--lr", 0.4, "--lr-min", 0.04, "--batch-size", 5]
    got = given(*cycle, "--peak-epoch", 3, "--annihilate", "--optimizer", "adamw", "--precision", "bfloat16")
    rates = eva_utils.learning_rates(got["scheduler"], 16)  # two batches an epoch
    assert rates.index(max(rates)) == 3 * 2 - 1 and max(rates) == pytest.approx(0.4)
    assert (rates[0], rates[-1]) == pytest.approx((0.04, 0.04 / 1e4))
    assert type(got["optimizer"]) is torch.optim.AdamW and got["optimizer"].param_groups[0]["fused"] is True
    rates = eva_utils.learning_rates(given(*cycle)["scheduler"], 16)
    assert rates.index(max(rates)) == 4 * 2 - 1 and rates[-1] == pytest.approx(0.04)


def test_a_resumed_run_is_asked_for(given):
    assert given("--resume")["resume"] == "auto"


def test_the_options_of_the_data_reach_the_loaders(given):
    got = given("--validation", 3, "--batch-size", 4, "--recipe", "eva6_s8", "--seed", 5, "--size", 16)
    trained, tested = got["train"].describe(), got["tested"].describe()
    assert (trained["images"], trained["batch_size"], trained["seed"]) == (7, 4, 5)
    assert "Cutout(16" in trained["transform"] and "Cutout" not in tested["transform"]
    assert tested["images"] == 3  # those held out, and not the five to test on
    assert got["train"].images.shape == (7, 3, 16, 16)
    anew = given("--test-share", 0.2, "--limit", 6)
    assert (len(anew["train"].labels), len(anew["tested"].labels)) == (6, 3)
    assert len(given()["tested"].labels) == 5


def test_a_network_that_whitens_has_seen_the_first_training_images(given):
    got = given("--model", "whitened_resnet", "--batch-size", 10)
    images = next(iter(got["train"]))[0]
    with torch.no_grad():
        out = got["model"].whitening(images).transpose(0, 1).flatten(1)[:12].double()
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12).double(), rtol=0, atol=0.02)


def test_the_options_of_the_network_reach_it(given):
    got = given("--model", "resnet18", "--norm", "group", "--last-stride", 1, "--standardize", "--seed", 4)
    model = got["model"]
    kinds = {type(module).__name__ for module in model.modules()}
    assert "StandardizedConv2d" in kinds and "GroupNorm" in kinds and not kinds & {"BatchNorm2d", "Conv2d"}
    assert model.layer4[0].conv1.stride == (1, 1) and model.fc.out_features == 2
    eva_utils.seed_everything(4)
    same = create_model("resnet18", num_classes=2, norm="group", last_stride=1, standardize=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), same.parameters(), strict=True))
    plain, centered = (given("--model", "small_resnet", *option)["model"] for option in ((), ("--center-filters",)))
    assert not any(is_parametrized(module) for module in plain.modules())
    assert all(is_parametrized(module) for module in centered.modules() if isinstance(module, nn.Conv2d))
    assert not any(type(module).__name__ == "StandardizedConv2d" for module in plain.modules())


@pytest.mark.parametrize("side", [12, 16])
def test_a_transformer_is_built_for_the_side_of_the_images(side, given):
    got = given("--model", "vit", "--size", side)
    assert got["model"].size == side and got["model"](next(iter(got["train"]))[0]).shape == (10, 2)


@pytest.fixture
def recorded(image_folder, tmp_path):
    """A run that was not trained, of two networks that say different things: its folder and what was noted of it."""
    data, run, rows = load_data(image_folder, size=16), tmp_path / "recorded", []
    run.mkdir()
    for epoch, which in enumerate(("best", "last"), start=1):
        torch.manual_seed(epoch)
        save_verified(run / f"{which}.pt", create_model("small_resnet", num_classes=2).state_dict())
        rows.append({"epoch": epoch, "test_accuracy": 70.0 - epoch, "test_loss": 1.5})
    settings = {"precision": "float32", "criterion": {"label_smoothing": 0.1}, "test_loader": data.test.describe()}
    (run / "history.json").write_text(History(rows, settings).to_json())
    options = {"epochs": 2, "model": "small_resnet", "norm": "layer", "seed": 0, "size": 16}
    options |= {"last_stride": None, "standardize": False, "test_share": None}
    note = {"commands": [], "options": options, "classes": data.classes, "mean": [0.1, 0.5, 0.9], "std": [0.1, 0.4, 2]}
    (run / "command.json").write_text(json.dumps(note))
    return run, note, data


def test_a_run_is_scored_by_its_own_mean_and_std_and_loss(recorded, image_folder):
    """Those of the images that it is scored on may be others."""
    folder, note, data = recorded
    printed = run("--evaluate", folder, "--data", image_folder, "--device", "cpu")
    own = data.test.transform
    lines = {}
    for name, transform in (("noted", plain_transform(note["mean"], note["std"])), ("own", own)):
        data.test.transform = transform
        for which in ("best", "last"):
            model = eva_utils.load_weights(create_model("small_resnet", num_classes=2), folder, which)
            loss = nn.CrossEntropyLoss(label_smoothing=0.1)
            score = engine.test(model, data.test, criterion=loss, device="cpu", precision="float32")
            said = f"{score.correct}/{score.samples} ({score.accuracy:.2f}%), loss {score.loss:.4f}; "
            lines[name, which] = said
    assert len(set(lines.values())) == 4
    assert f"best.pt, epoch 1: {lines['noted', 'best']}the record says 69.00% of the same images" in printed
    assert f"last.pt, epoch 2: {lines['noted', 'last']}the record says 68.00% of the same images" in printed
