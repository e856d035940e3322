"""The full record of a finished run, and the assignment's README written from it."""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import page
from .assignments import Brief, find_brief
from .batches import check_classes
from .brief import Audit, audit, count_images
from .checkpoint import latest_state, load_weights
from .command_note import commands_of
from .gradcam import GradCAM
from .history import History
from .lock import locked
from .notebook import cells_of
from .predictions import Predictions, Records, predict
from .rules import norm_kinds
from .runtime import keep_rng, pick_device, pick_precision, unwrap, versions
from .summary import summary
from .verified import DamagedFileError, load_verified, save_verified

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
    _check_arguments(run, model, data)
    folder, brief = Path(run), None if brief is None else find_brief(brief)
    if notebook is not None:
        cells_of(notebook)  # refuses what is no notebook now, and not after the work
    if not folder.is_dir() or not any(folder.glob("epoch-[0-9]*.pt")):
        raise FileNotFoundError(
            f"{folder} holds no finished epoch of a run; give the folder that fit(checkpoint=) wrote"
        )
    with locked(folder), keep_rng():
        history = _read_history(folder)
        splits = _tested_splits(history, data)
        _check_own(folder)
        place = pick_device(device)
        how: dict[str, Any] = {"device": place, "precision": _precision(history, place)}
        trial = load_weights(copy.deepcopy(unwrap(model)), folder, "best")
        predictions = predict(trial, data.test, **how)
        check_classes(predictions.probabilities.shape[1], data.classes)
        results = _results(folder, history, trial, predictions, splits, data, how)
        load_weights(trial, folder, "best")
        asked = brief.layers if brief and brief.layers else ()
        layers = [layer for layer in asked if layer in dict(trial.named_modules())] or None
        image = next(iter(data.test))[0][:1]
        maps, unexplained = _map_sizes(trial, layers, image)
        galleries = _galleries(trial, predictions, list(maps), brief)
        found = None
        if brief:
            found = audit(
                brief,
                history,
                trial,
                data,
                shown={kind: gallery["records"] for kind, gallery in galleries.items()},
                explained={kind: gallery["explained"] for kind, gallery in galleries.items()} if maps else None,
                maps=maps,
                notebook=notebook,
            )
        record = {
            "title": brief.title if brief else f"{history.settings['model']}, {len(history)} epochs",
            "objective": brief.objective if brief else "Train an image classifier and see what it learnt.",
            "settings": history.settings,
            "rows": history.rows,
            "results": results,
            "summary": _table(trial, image),
            "audit": [asdict(finding) for finding in found.findings] if found else [],
            "data": _describe_data(data),
            "predictions": {
                "probabilities": predictions.probabilities,
                "predicted": predictions.predicted,
                "target": predictions.target,
            },
            "galleries": {kind: _pack(gallery) for kind, gallery in galleries.items()},
            "maps": {layer: list(size) for layer, size in maps.items()},
            "unexplained": unexplained,
            "layers_were_named": bool(layers or getattr(trial, "cam_layer", None)),
            "norms": dict(norm_kinds(trial)),
            "versions": versions(),
            "command": commands_of(folder),
        }
        pages = page.render(record)
        save_verified(folder / RECORD, record)
        path = page.write_page(folder, pages)
    return Report(path, found, record)


def _check_arguments(run: Any, model: Any, data: Any) -> None:
    if not isinstance(run, str | Path):
        raise TypeError(f"run is the folder that fit(checkpoint=...) wrote, not {type(run).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")
    missing = [name for name in ("train", "test", "classes", "mean", "std") if not hasattr(data, name)]
    if missing:
        raise TypeError(f"data is what load_data returned; {type(data).__name__} has no {missing[0]}")


def _check_own(folder: Path) -> None:
    """Refuse to write over files that were not written here."""
    page.check_own(folder)
    if (folder / RECORD).exists():
        try:
            load_verified(folder / RECORD)
        except DamagedFileError as error:
            raise ValueError(f"{error}; rename or remove it, and it is written anew") from error


def _read_history(folder: Path) -> History:
    """Return the record of a finished run from its last checkpoint, whose checksum guards it."""
    notes: list[str] = []
    state = latest_state(folder, notes.append)
    if notes:
        raise ValueError(f"the last checkpoint is damaged, so the run is not whole ({notes[0]}); resume it first")
    history = History(**(state or {})["history"])
    written = folder / "history.json"
    try:
        claimed = History.from_json(written.read_text(encoding="utf-8"))
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


def _tested_splits(history: History, data: Any) -> list[str]:
    """Return the splits that may have chosen the best epoch, or refuse data that is not the run's.

    A loader of `load_data` is known by its fingerprint, another by its number of images.
    """
    trained, tested = (history.settings[f"{part}_loader"] for part in ("train", "test"))
    if trained.get("fingerprint") != getattr(data.train, "fingerprint", None):
        raise ValueError(
            "data.train is not what the run was trained on; load the data as it was, with the same options"
        )
    found = []
    for name in ("test", "validation"):
        split = getattr(data, name, None)
        if split is None or getattr(split, "fingerprint", None) != tested.get("fingerprint"):
            continue
        if tested.get("images") in (None, count_images(split)):
            found.append(name)
    if not found:
        raise ValueError(
            "the run was tested on other images than data's; load the data as it was, with the same options"
        )
    return found


def _table(model: nn.Module, image: Tensor) -> str:
    """Return the table of layers, or why there is none: a run is not without a report for that."""
    _, channels, height, width = image.shape
    try:
        return summary(model, (channels, height, width))
    except ValueError as error:
        return str(error)


def _precision(history: History, device: torch.device) -> str:
    """Return the precision of the run if this device has it."""
    recorded = history.settings["precision"]
    try:
        pick_precision(recorded, device)
    except ValueError:
        return "auto"
    return recorded


def _results(
    folder: Path, history: History, model: nn.Module, predictions: Predictions, splits: list[str], data: Any, how: dict
) -> dict:
    """Return the headline, and refuse weights that do not score what the record says."""
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
        load_weights(model, folder, "last")
        accuracies = {"best": predictions.accuracy, "last": predict(model, data.test, **how).accuracy}
    return {
        "split": split,
        "chosen_on": len(scored),
        "chosen_accuracy": best["test_accuracy"],
        "best": {"epoch": best["epoch"], "accuracy": accuracies["best"]},
        "last": {"epoch": last["epoch"], "accuracy": accuracies["last"]},
        "recomputed": predictions.accuracy,
        "samples": len(predictions),
    }


def _map_sizes(model: nn.Module, layers: list[str] | None, image: Tensor) -> tuple[dict[str, tuple[int, int]], str]:
    """Return the sizes of the layers' maps, or why this model has none."""
    try:
        return GradCAM(model, layers).sizes(image), ""
    except ValueError as error:
        return {}, str(error)


def _galleries(model: nn.Module, predictions: Predictions, layers: list[str], brief: Brief | None) -> dict[str, dict]:
    """Return the hits and the mistakes to show, with the maps of the same records at the layers, if there are any."""
    galleries = {}
    correct, wrong = (brief.correct, brief.misclassified) if brief else (None, None)
    for records in (predictions.correct(max(SHOWN, correct or 0)), predictions.wrong(max(SHOWN, wrong or 0))):
        gallery: dict[str, Any] = {"records": records, "explained": [], "maps": {}, "true_maps": {}}
        if records and layers:
            cam, images = GradCAM(model, layers), torch.stack([record.image for record in records])
            gallery["explained"] = [record.index for record in records]
            gallery["maps"] = cam(images, [record.predicted for record in records])
            if len(gallery["maps"]) == 1:
                gallery["true_maps"] = cam(images, [record.target for record in records])
        galleries[records.kind] = gallery
    return galleries


def _pack(gallery: dict) -> dict:
    """Turn a gallery into tensors and plain values."""
    records: Records = gallery["records"]
    fields = [asdict(record) for record in records]
    return {**gallery, "records": fields, "asked": records.asked, "total": records.total}


def _describe_data(data: Any) -> dict:
    labels = {name: getattr(getattr(data, name, None), "labels", None) for name in ("train", "validation", "test")}
    counts = {name: len(found) for name, found in labels.items() if found is not None}
    names = {"classes": list(data.classes), "mean": list(data.mean), "std": list(data.std)}
    return {**names, "source": getattr(data, "source", ""), "images": counts}
