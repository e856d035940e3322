"""A finished run: its record, and whether data and weights are those it speaks of."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .brief import are_recorded
from .checkpoint import latest_state, load_weights
from .history import History
from .parts import copy_model, count_images
from .predictions import Predictions, predict
from .runtime import pick_precision, precision_name


def read_history(folder: Path) -> History:
    """Return the record of a finished run from its last checkpoint, whose checksum guards it."""
    notes: list[str] = []
    state = latest_state(folder, notes.append)
    if notes:
        raise ValueError(f"the last checkpoint is damaged, so the run is not whole ({notes[0]}); resume it first")
    history = History(**(state or {})["history"])
    written = folder / "history.json"
    try:
        claimed = History.load(folder)
        # How many epochs it is to have may change after an epoch is saved; only history.json knows.
        wanted = history.settings["epochs"] = claimed.settings["epochs"]
        same = claimed == History.from_json(history.to_json())
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(
            f"{written} is not what the run recorded; fit with resume='auto' and epochs={len(history)} writes it anew"
        )
    if len(history) < wanted:
        raise ValueError(
            f"the run in {folder} has {len(history)} of its {wanted} epochs; finish it with resume='auto' (--resume), "
            f"or end it there with epochs={len(history)}"
        )
    return history


def tested_splits(history: History, data: Any) -> list[str]:
    """Return the splits that may have chosen the best epoch, or refuse data that is not the run's.

    A loader of `load_data` is known by its fingerprint, another by its number of images.
    """
    trained, tested = (history.settings[f"{part}_loader"] for part in ("train", "test"))
    if trained.get("fingerprint") != getattr(data.train, "fingerprint", None):
        images, count = trained.get("images"), count_images(data.train)
        numbers = f" ({images:,} images, and these are {count:,})" if images and count and images != count else ""
        raise ValueError(
            f"data.train is not what the run was trained on{numbers}; load the data as it was, with the same options"
        )
    splits = {name: getattr(data, name, None) for name in ("test", "validation")}
    found = [name for name, split in splits.items() if split is not None and are_recorded(split, tested)]
    if not found:
        raise ValueError(
            "the run was tested on other images than data's; load the data as it was, with the same options"
        )
    return found


def precision_of(settings: dict, device: torch.device) -> str:
    """Return the precision of a run if this device computes in it, else "auto"."""
    recorded = settings["precision"]
    own = ["float32", precision_name(pick_precision("auto", device))]
    if device.type == "cuda":
        own.append("float16")
    return recorded if recorded in own else "auto"


def score(
    folder: Path, history: History, model: nn.Module, predictions: Predictions, splits: list[str], data: Any, how: dict
) -> dict:
    """Return the accuracies of the best and the last epoch, and refuse weights that do not score what the record says.

    Args:
        folder: of the run.
        history: its record.
        model: with the weights of the best epoch; it is left as it is.
        predictions: what it says of the test images.
        splits: those that may have chosen the best epoch, as `tested_splits` returns them.
        data: the run's.
        how: device and precision, as `predict` takes them.

    Raises:
        ValueError: the weights get another number of images right.
    """
    best, last = history.best, history.rows[-1]
    for split in splits:
        scored = predictions if split == "test" else predict(model, data.validation, **how)
        recorded = round(best["test_accuracy"] * len(scored) / 100)
        found = int((scored.predicted == scored.target).sum())
        # Another device or library rounds otherwise, which turns a rare image.
        if abs(found - recorded) <= math.ceil(len(scored) / 1000):
            break
    else:
        raise ValueError(
            f"best.pt gets {found} of {len(scored)} images right and the record says {recorded}; "
            "these are not the weights or not the images of the record"
        )
    accuracies = {"best": best["test_accuracy"], "last": last["test_accuracy"]}
    if split != "test":
        of_last = predict(load_weights(copy_model(model), folder, "last"), data.test, **how)
        accuracies = {"best": predictions.accuracy, "last": of_last.accuracy}
    return {
        "split": split,
        "chosen_on": len(scored),
        "chosen_accuracy": best["test_accuracy"],
        "best": {"epoch": best["epoch"], "accuracy": accuracies["best"]},
        "last": {"epoch": last["epoch"], "accuracy": accuracies["last"]},
        "recomputed": predictions.accuracy,
        "samples": len(predictions),
    }
