"""Each section of a report says what its record holds."""

import html
import re

import numpy as np
import pytest
import torch

from eva_utils.utils import sections
from eva_utils.utils.gradcam import overlay
from eva_utils.utils.hyperparameters import hyperparameters
from eva_utils.utils.page import FIGURES, _figures
from eva_utils.utils.predictions import HITS, MISTAKES
from eva_utils.utils.rules import FAIL, PASS, UNCHECKED
from eva_utils.utils.sections import plus_minus, results


def test_plus_minus_is_wilsons():
    assert plus_minus(90, 10_000) == pytest.approx(0.588, abs=1e-3)
    assert plus_minus(50, 100) == pytest.approx(100 * 1.96 / 1.038416 * (0.0025 + 0.00009604) ** 0.5)
    assert plus_minus(100, 40) == pytest.approx(100 * 1.96**2 / 80 / (1 + 1.96**2 / 40))


@pytest.mark.parametrize("right", [0, 1, 18, 20])
def test_a_lopsided_interval_is_told_by_its_ends(right):
    """Those of Wilson's, here as the roots of (p - x)² = 1.96² x (1 - x) / n."""
    share, factor = right / 20, 1.96**2 / 20
    low, high = sorted(np.roots([1 + factor, -2 * share - factor, share**2]).real)
    row = {"accuracy": 5.0 * right, "epoch": 1}
    found = {"best": row, "last": row, "samples": 20, "split": "test", "recomputed": 5.0 * right}
    text = results({"results": found, "audit": [], "data": {"source": ""}})
    assert (
        f"{5 * right:.2f}% ({100 * abs(low):.2f} to {100 * high:.2f}) |" in text
        and "In brackets stands the 95%" in text
    )


def test_an_interval_that_reaches_as_far_to_both_sides_is_told_by_half():
    row = {"accuracy": 89.78, "epoch": 39}
    found = {"best": row, "last": row, "samples": 10_000, "split": "test", "recomputed": 89.78}
    text = results({"results": found, "audit": [], "data": {"source": ""}})
    assert "| best epoch, 39 | 89.78% ± 0.59 |" in text and "± is half the 95%" in text


def told(text):
    """The rows of a table: what stands in the second cell, by the first."""
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {html.unescape(row[0]): html.unescape(" | ".join(row[1:])) for row in rows[2:]}


GROUP = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
RECORD = {
    "settings": {
        "train_loader": {"transform": "RandomCrop(padding=4) -> Normalize(mean=(0, 0, 0))", "batch_size": 32, "seed": 4,
                         "fingerprint": "aa"},
        "test_loader": {"fingerprint": "bb"},
        "optimizer": {"class": "SGD", "group 0": {"parameters": 2, **GROUP},
                      "group 1": {"parameters": 3, **GROUP, "weight_decay": 0.0},
                      "group 2": {"parameters": 1, **GROUP, "weight_decay": 0.0}},
        "scheduler": {"class": "StepLR", "step_size": 2, "gamma": 0.1, "nothing": None, "empty": []},
        "criterion": {"class": "CrossEntropyLoss", "label_smoothing": 0.1},
        "seed": 7, "torch_seed": 1, "warmup": 2, "ema": 0.99, "clip": 1.5, "model": "Net", "parameters": 1_234_567,
        "precision": "bfloat16", "batches": 31, "machine": "A", "threads": 2, "device": "cpu", "python": "3.12",
        "torch": "2.6", "date": "2030-01-01",
    },
    "data": {"source": "shapes, drawn", "images": {"train": 1000, "test": 90}, "classes": ["cat", "dog"],
             "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    "rows": [{"epoch": 1, "seconds": 65.0, "lr": 0.4}, {"epoch": 2, "seconds": 5.0, "lr": 0.2},
             {"epoch": 3, "seconds": 65.4, "lr": 0.1}],
    "versions": {"eva_utils": "1"}, "command": "python train.py", "audit": [],
}  # fmt: skip


def test_every_choice_has_its_row_in_the_parameters():
    groups = "(lr=0.1, momentum=0.9, weight_decay={}, nesterov=True) of {} tensors"
    expected = {
        "data": "shapes, drawn: 1,000 train, 90 test",
        "training transforms": "RandomCrop(padding=4)",
        "normalization of pixels": "mean (0.1000, 0.2000, 0.3000), standard deviation (0.4000, 0.5000, 0.6000)",
        "batch size": "32",
        "epochs": "3",
        "optimizer": f"SGD: {groups.format(0.0005, 2)}; {groups.format(0, 4)}",
        "learning rate schedule": "StepLR(step_size=2, gamma=0.1)",
        "warmup": "2 epochs",
        "averaged weights": "decay 0.99",
        "gradient clipping": "norm 1.5",
        "loss": "CrossEntropyLoss(label_smoothing=0.1)",
        "model": "Net, 1,234,567 parameters",
        "seed": "1 of torch before the run, 4 of the order and the augmentation, 7 of the run",
    }
    assert told(hyperparameters(RECORD)).items() >= expected.items()
    weighted = {"class": "CrossEntropyLoss", "weight": [1.0, 10.5], "label_smoothing": 0.0}
    settings = {**RECORD["settings"], "criterion": weighted}
    dogs = {**RECORD["data"], "classes": ["cat", "dog, wolf"]}
    found = told(hyperparameters({**RECORD, "settings": settings, "data": dogs}))
    assert (found["loss"], found["classes"]) == ("CrossEntropyLoss(weight=[1, 10.5])", "cat; dog, wolf")
    settings["criterion"] = {**weighted, "weight": [1.0] * 11}
    loss = told(hyperparameters({**RECORD, "settings": settings}))["loss"]
    assert loss == f"CrossEntropyLoss(weight=[{'1, ' * 10}…])"
    settings["criterion"] = {
        "class": "penalized",
        "arguments": ["model", "off", "names", "share"],
        **{"share": 1e-5, "off": 0, "names": ["a", None, 0.25]},
    }
    loss = told(hyperparameters({**RECORD, "settings": settings}))["loss"]
    assert loss == "penalized(off=0, names=[a, None, 0.25], share=1e-05)"
    scheduler = {"class": "OneCycleLR", "total_steps": 1200}
    settings = {**RECORD["settings"], "scheduler": scheduler, "torch_seed": 2**40, "warmup": 0, "ema": None}
    found = told(hyperparameters({**RECORD, "settings": settings}))
    cycle = "OneCycleLR of 1,200 steps: 0.1 at first, 0.4 after epoch 1, 0.1 at last"
    assert (found["learning rate schedule"], found["warmup"], found["averaged weights"]) == (cycle, "none", "none")
    assert found["seed"] == "4 of the order and the augmentation, 7 of the run"


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        ((65.0, 5.0, 65.4), "2 min 15 s for 3 epochs, tests included; median epoch 65.0 s"),
        ((3000.0, 4559.0), "2 h 06 min for 2 epochs, tests included; median epoch 3779.5 s"),
        ((3599.6,), "1 h 00 min for 1 epoch, tests included; median epoch 3599.6 s"),
        ((3000.0, 4529.0), "2 h 05 min for 2 epochs, tests included; median epoch 3764.5 s"),
    ],
)
def test_the_time_and_the_command_of_a_run_are_told(seconds, time):
    text = sections.made({**RECORD, "rows": [{"seconds": each} for each in seconds]})
    assert text.startswith("By this command:\n\n```text\npython train.py\n```")
    assert sections.made({**RECORD, "command": "cd runs\npython train.py"}).startswith("By these commands:\n")
    assert sections.made({**RECORD, "command": None}).startswith("By a call of `fit`, in a notebook or a script.")
    found = told(text)
    assert found["time"] == time and found["fingerprint of the data"] == "train aa, test bb"
    assert found["trained on"] == "2030-01-01, A, 2 threads, cpu; Python 3.12, torch 2.6"


def test_below_the_curves_it_stands_what_was_scored_when():
    text = sections.curves({**RECORD, "results": {"split": "validation"}})
    assert text.startswith("![Loss and accuracy by epoch](figures/curves.png)\n\n")
    assert "the validation images are scored after each epoch, with the averaged weights. So they may" in text
    plain = {"settings": {**RECORD["settings"], "ema": None}, "results": {"split": "test"}}
    assert "the test images are scored after each epoch. So they may be ahead" in sections.curves(plain)


def test_the_log_is_that_of_the_terminal():
    row = {"epoch": 1, "seconds": 125.4, "train_loss": 1.5, "train_accuracy": 40, "test_loss": 1.25, "lr": 0.05}
    row["test_accuracy"] = 100 * 35 / 90  # which of 90 gives a little less than 35
    results = {"chosen_on": 90, "split": "test"}
    _, *lines, _ = (
        sections.log({"settings": {"batches": 3}, "results": results, "rows": [row]}).split("\n\n")[0].split("\n")
    )
    assert lines == [
        "EPOCH: 1",
        f"Loss=1.5000 Batch_id=2 LR=0.05000 Accuracy=40.00: 100%|{'█' * 10}| 3/3 [02:05]",
        "Test set: Average loss: 1.2500, Accuracy: 35/90 (38.89%)",
    ]


def test_the_sections_say_what_is_shown_and_what_was_judged():
    record = {"norms": {"GroupNorm of one group": 3, "BatchNorm2d": 1}, "summary": "table"}
    meaning = "3 GroupNorm of one group, 1 BatchNorm2d (LayerNorm over channels, height and width)."
    assert sections.summary(record).endswith(f"Normalization layers: {meaning}")
    for norms, said in (({"BatchNorm2d": 2}, "2 BatchNorm2d."), ({}, "none.")):
        assert sections.summary({**record, "norms": norms}).endswith(f"Normalization layers: {said}")
    shown = {"records": [{"index": 5, "target": 1}, {"index": 3, "target": 0}]}
    record = {"galleries": {MISTAKES: shown, HITS: shown}, "maps": {"conv": (8, 4)}, "layers_were_named": True}
    gallery = sections.gallery(record, MISTAKES, "wrong")
    assert gallery.startswith("2 test images, most confident first; indices 5, 3.\n\n![misclassified images](")
    assert sections.gallery(record, HITS, "right").startswith("2 test images, surest first; indices 5, 3.")
    drawn = sections.gradcam(record, MISTAKES, "wrong")
    assert "conv 8x4" in drawn and "deepest" not in drawn
    followed = "Each image is followed by the overlay for the predicted class"
    assert f"{followed} and by that for the true one." in drawn
    assert f"{followed}. Dark violet" in sections.gradcam(record, HITS, "right")
    record["maps"], record["layers_were_named"] = {"a": (8, 8), "b": (4, 4)}, False
    assert "Each row is one image" in sections.gradcam(record, HITS, "right")
    assert "The layer is the deepest" in sections.gradcam(record, HITS, "right")
    findings = [dict.fromkeys(("rule", "required", "found"), "x") | {"verdict": v} for v in (PASS, FAIL, UNCHECKED)]
    assert sections.audit(findings).startswith("1 of 3 rules pass.")


def test_each_gallery_has_its_own_images_and_maps():
    """Of a hit that is black and a mistake that is white, at a layer of 8x4."""
    galleries = {}
    for kind, level, predicted in ((HITS, -1.0, 0), (MISTAKES, 1.0, 1)):
        fields = {"index": 5, "image": torch.full((3, 8, 8), level), "target": 0, "predicted": predicted}
        maps, true_maps = ({"conv": torch.full((1, 8, 8), heat)} for heat in (0.25, 0.75))
        shown = {"maps": maps, "true_maps": true_maps}
        galleries[kind] = {"records": [{**fields, "confidence": 0.5}], "asked": 4, "total": 1, **shown}
    said, row = torch.tensor([0, 1]), {"epoch": 1, "lr": 0.1}
    row |= {f"{part}_{kind}": 1.0 for part in ("train", "test") for kind in ("loss", "accuracy")}
    record = {
        "rows": [row],
        "results": {"split": "validation"},
        "data": {"classes": ["cat", "dog"], "mean": (0.5,) * 3, "std": (0.5,) * 3},
        "predictions": {"probabilities": torch.eye(2), "predicted": said, "target": torch.zeros(2).long()},
        "galleries": galleries,
        "maps": {"conv": (8, 4)},
    }
    drawn = _figures(record)
    assert set(drawn) == set(FIGURES)
    for name, kind, level in (("correct", HITS, 0.0), ("misclassified", MISTAKES, 1.0)):
        assert drawn[name].get_suptitle() == f"1 {kind} image, all there are of the 4 asked for"
        image = drawn[name].axes[0].images[0].get_array()
        assert image.min() == image.max() == level
        assert "\nGrad-CAM at conv, 8x4;" in drawn[f"{name}_gradcam"].get_suptitle()
        pixels = drawn[f"{name}_gradcam"].axes[0].images[0].get_array()
        assert pixels.min() == pixels.max() == level
    _, predicted, true = drawn["misclassified_gradcam"].axes[:3]
    for axis, heat in ((predicted, 0.25), (true, 0.75)):
        expected = overlay(torch.ones(3, 8, 8), torch.full((8, 8), heat)).permute(1, 2, 0).numpy()
        assert abs(axis.images[0].get_array() - expected).max() < 1e-6
    assert "validation" in [text.get_text() for text in drawn["curves"].legends[0].get_texts()]
    assert [text.get_text() for text in drawn["confusion"].axes[0].texts] == ["1", "1", "0", "0"]


def test_the_results_are_of_best_and_last_epoch_and_say_what_chose():
    results = {"best": {"epoch": 3, "accuracy": 90.0}, "last": {"epoch": 5, "accuracy": 80.0}, "samples": 10_000,
               "split": "validation", "chosen_on": 5000, "chosen_accuracy": 91.5, "recomputed": 90.01}  # fmt: skip
    record = {"results": results, "audit": [], "data": {"source": "CIFAR-10"}}
    text = sections.results(record)
    assert told(text) == {"best epoch, 3": "90.00% ± 0.59", "last epoch, 5": "80.00% ± 0.78"}
    assert "chosen on 5,000 held-out training images, of which it gets 91.50% right" in text
    assert "scored again for them: 90.01%." in text and "The images are: CIFAR-10." in text
    results["split"] = "test"
    assert "on the test images themselves, so its accuracy" in sections.results(record)
    judged = {**record, "audit": [{"rule": "epochs", "verdict": PASS}]}
    assert "themselves, as the assignments measure it, so its" in sections.results(judged)
