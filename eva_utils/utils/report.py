"""The full record of a finished run, and the assignment's README written from it."""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import page
from .brief import Audit, Brief, audit, find_brief
from .checkpoint import latest_state, load_weights, save_verified
from .gradcam import GradCAM
from .history import History
from .lock import locked
from .predictions import Predictions, Records, predict
from .runtime import pick_device, pick_precision, versions
from .summary import summary

RECORD = "report.pt"
SHOWN = 20


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote: the README's path, the findings of the audit, and the record it was made from."""

    path: Path
    audit: Audit | None
    record: dict

    def __repr__(self) -> str:
        return f"{self.path} is written" + (f"\n{self.audit}" if self.audit else "")


def write_report(
    run: str | Path,
    model: nn.Module,
    data: Any,
    brief: str | Brief | None = None,
    *,
    notebook: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Report:
    """Write the assignment's README.md with its figures into the folder of a finished run.

    The best weights of the run score the test images once more; what they say feeds the galleries, the
    confusion matrix and Grad-CAM. All of it is first put into `report.pt`, and the README and the figures are
    made from that alone: the same record gives the same bytes. The model given is left as it is.

    Args:
        run: folder that `fit(checkpoint=...)` wrote.
        model: of the architecture that was trained, with any weights.
        data: what `load_data` returned and the run was trained on.
        brief: the assignment, by name or as a `Brief`, against whose rules the run is audited; or None.
        notebook: file of the notebook, for a brief that has a rule about it; None is the one this runs in.
        device: see `eva_utils.utils.runtime.pick_device`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the run is unfinished or still going, its record was changed, the model does not fit its
            weights, the data is not the run's, or a README.md is in the folder that was not written here.
    """
    folder, brief = Path(run), None if brief is None else find_brief(brief)
    _check_arguments(model, data)
    if not folder.is_dir() or not any(folder.glob("epoch-*.pt")):
        raise FileNotFoundError(
            f"{folder} holds no finished epoch of a run; give the folder that fit(checkpoint=) wrote"
        )
    with locked(folder):
        history = _read_history(folder)
        split = _tested_split(history, data)
        page.check_own(folder / "README.md")
        place = pick_device(device)
        how: dict[str, Any] = {"device": place, "precision": _precision(history, place)}
        trial = load_weights(copy.deepcopy(getattr(model, "_orig_mod", model)), folder, "best")
        predictions = predict(trial, data.test, **how)
        results = _results(folder, history, trial, predictions, split, data, how)
        load_weights(trial, folder, "best")
        asked = brief.layers if brief and brief.layers else ()
        layers = [layer for layer in asked if layer in dict(trial.named_modules())] or None
        galleries = _galleries(trial, predictions, layers)
        image = next(iter(data.test))[0][:1]
        maps = GradCAM(trial, layers).sizes(image)
        shown = {kind: gallery["records"] for kind, gallery in galleries.items()}
        found = audit(
            brief, history, trial, data, shown=shown, explained=shown, maps=maps, notebook=notebook
        ) if brief else None  # fmt: skip
        record = {
            "title": brief.title if brief else f"{history.settings['model']}, {len(history)} epochs",
            "objective": brief.objective if brief else "Train an image classifier and see what it learnt.",
            "settings": history.settings,
            "rows": history.rows,
            "results": results,
            "summary": summary(trial, tuple(image.shape[1:])),
            "audit": [asdict(finding) for finding in found.findings] if found else [],
            "data": _describe_data(data),
            "predictions": {
                "probabilities": predictions.probabilities,
                "predicted": predictions.predicted,
                "target": predictions.target,
            },
            "galleries": {kind: _pack(gallery) for kind, gallery in galleries.items()},
            "maps": {layer: list(size) for layer, size in maps.items()},
            "versions": versions(),
            "command": _command(folder),
        }
        save_verified(folder / RECORD, record)
        path = page.write_page(folder, record)
    return Report(path, found, record)


def _check_arguments(model: Any, data: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")
    missing = [name for name in ("train", "test", "classes", "mean", "std") if not hasattr(data, name)]
    if missing:
        raise TypeError(f"data is what load_data returned; {type(data).__name__} has no {missing[0]}")


def _read_history(folder: Path) -> History:
    """Return the record of a finished run from its last checkpoint, whose checksum guards it."""
    notes: list[str] = []
    state = latest_state(folder, notes.append)
    if notes:
        raise ValueError(f"the last checkpoint is damaged, so the run is not whole ({notes[0]}); resume it first")
    history = History(**(state or {})["history"])
    wanted = history.settings["epochs"]
    if len(history) < wanted:
        raise ValueError(
            f"the run in {folder} has {len(history)} of its {wanted} epochs; finish it with resume='auto' (--resume), "
            f"or end it there with epochs={len(history)}"
        )
    text = (folder / "history.json").read_text(encoding="utf-8") if (folder / "history.json").exists() else ""
    try:
        same = json.loads(text) == json.loads(history.to_json())
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"{folder / 'history.json'} is not what the run recorded; resume='auto' with the same epochs writes it anew"
        )
    return history


def _tested_split(history: History, data: Any) -> str:
    """Return which split chose the best epoch, "test" or "validation", or refuse data that is not the run's."""
    recorded = {part: history.settings[f"{part}_loader"].get("fingerprint") for part in ("train", "test")}
    if None in recorded.values():
        return "test"
    if recorded["train"] != getattr(data.train, "fingerprint", None):
        raise ValueError(
            "data.train is not what the run was trained on; load the data as it was, with the same options"
        )
    for name in ("test", "validation"):
        split = getattr(data, name, None)
        if split is not None and getattr(split, "fingerprint", None) == recorded["test"]:
            return name
    raise ValueError("the run was tested on other images than data's; load the data as it was, with the same options")


def _precision(history: History, device: torch.device) -> str:
    """Return the precision of the run if this device has it."""
    recorded = history.settings["precision"]
    try:
        pick_precision(recorded, device)
    except ValueError:
        return "auto"
    return recorded


def _results(
    folder: Path, history: History, model: nn.Module, predictions: Predictions, split: str, data: Any, how: dict
) -> dict:
    """Return the headline, and refuse weights that do not score what the record says."""
    best, last = history.best, history.rows[-1]
    scored = predictions if split == "test" else predict(model, data.validation, **how)
    recorded = round(best["test_accuracy"] * len(scored) / 100)
    found = int((scored.predicted == scored.target).sum())
    # Another device or library rounds otherwise, which turns a rare image.
    if abs(found - recorded) > math.ceil(len(scored) / 1000):
        raise ValueError(
            f"best.pt gets {found} of {len(scored)} images right and the record says {recorded}; "
            "these are not the weights or not the images of the record"
        )
    if split == "test":
        last_accuracy = last["test_accuracy"]
    else:
        load_weights(model, folder, "last")
        last_accuracy = predict(model, data.test, **how).accuracy
    return {
        "split": split,
        "chosen_on": len(scored),
        "chosen_accuracy": best["test_accuracy"],
        "best": {
            "epoch": best["epoch"],
            "accuracy": best["test_accuracy"] if split == "test" else predictions.accuracy,
        },
        "last": {"epoch": last["epoch"], "accuracy": last_accuracy},
        "recomputed": predictions.accuracy,
        "samples": len(predictions),
    }


def _galleries(model: nn.Module, predictions: Predictions, layers: list[str] | None) -> dict[str, dict]:
    """Return the hits and the mistakes to show, with the maps of the same records."""
    cam, galleries = GradCAM(model, layers), {}
    for records in (predictions.correct(SHOWN), predictions.wrong(SHOWN)):
        gallery: dict[str, Any] = {"records": records, "maps": {}, "true_maps": {}}
        if records:
            images = torch.stack([record.image for record in records])
            gallery["maps"] = cam(images, [record.predicted for record in records])
            if len(gallery["maps"]) == 1:
                gallery["true_maps"] = cam(images, [record.target for record in records])
        galleries[records.kind] = gallery
    return galleries


def _pack(gallery: dict) -> dict:
    """Turn a gallery into tensors and plain values."""
    records: Records = gallery["records"]
    fields = [asdict(record) for record in records]
    return {**gallery, "records": fields, "asked": records.asked}


def _describe_data(data: Any) -> dict:
    labels = {name: getattr(getattr(data, name, None), "labels", None) for name in ("train", "validation", "test")}
    counts = {name: len(found) for name, found in labels.items() if found is not None}
    names = {"classes": list(data.classes), "mean": list(data.mean), "std": list(data.std)}
    return {**names, "source": getattr(data, "source", ""), "images": counts}


def _command(folder: Path) -> str | None:
    """Return the lines of the shell that made the run, if the command line did."""
    try:
        return "\n".join(json.loads((folder / "command.json").read_text(encoding="utf-8"))["commands"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
