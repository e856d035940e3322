"""The full record of a finished run, and the assignment's README written from it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import finished, page
from .assignments import Brief, find_brief
from .batches import check_classes
from .brief import Audit, audit
from .checkpoint import last_epoch, load_weights
from .checks import check_data, check_model
from .command_note import commands_of
from .compiling import unwrap
from .gradcam import GradCAM
from .kept import keep_rng
from .lock import locked
from .notebook import cells_of
from .parts import copy_model, count_drawn, keep_loaders, layers_of, norm_kinds, parametrizations
from .predictions import Predictions, Records, predict
from .runtime import pick_device, versions
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
        audit = f"\n{self.audit}" if self.audit else ", without an audit: there is no brief"
        return f"{self.path} is written{audit}"


def write_report(
    run: str | Path,
    model: nn.Module,
    data: Any,
    brief: str | Brief | None = None,
    *,
    layers: Sequence[str] | None = None,
    reshape: Callable[[Tensor], Tensor] | None = None,
    notebook: str | Path | None = None,
    author: str | None = None,
    remarks: str | None = None,
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
        layers: those that Grad-CAM explains; None is the brief's that the model has, or the one `GradCAM` picks.
        reshape: turns a layer's output into a map, as a transformer needs it; see `GradCAM`.
        notebook: file of the notebook, for a brief that has a rule about it; None is the one this runs in.
        author: whose report it is, named below the title.
        remarks: text in Markdown for a section of its own, as what you found and would try next.
        device: see `eva_utils.utils.runtime.pick_device`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the run is unfinished or still going, its record was changed, the model does not fit its
            weights or has no such layer, the data is not the run's, or a README.md is in the folder that was not
            written here.
        TypeError: an argument is not what its name says.
        OSError: the folder cannot be written to.
    """
    _check_arguments(run, model, data, author, remarks)
    folder, brief = Path(run), None if brief is None else find_brief(brief)
    GradCAM(model, layers, reshape=reshape)  # refuses a layer that is not there now, and not after the work
    if notebook is not None:
        cells_of(notebook)  # likewise what is no notebook
    if not last_epoch(folder):
        raise FileNotFoundError(
            f"{folder} holds no finished epoch of a run; give the folder that fit(checkpoint=) wrote"
        )
    with locked(folder), keep_rng(), keep_loaders(data.train, data.test):
        history = finished.read_history(folder)
        splits = finished.tested_splits(history, data)
        before = _check_own(folder)
        given = (("author=", "author", author), ("remarks=", "remarks", remarks), ("brief=", "audit", brief))
        left = " and ".join(name for name, part, now in given if before.get(part) and not now)
        if left:
            warnings.warn(f"the report before this one was given {left}; give it again to keep it", stacklevel=2)
        device = pick_device(device)
        how: dict[str, Any] = {"device": device, "precision": finished.precision_of(history.settings, device)}
        trial = load_weights(copy_model(unwrap(model)), folder, "best")
        predictions = predict(trial, data.test, **how)
        check_classes(predictions.probabilities.shape[1], data.classes)
        results = finished.score(folder, history, trial, predictions, splits, data, how)
        layers = [layers] if isinstance(layers, str) else layers
        asked = layers or (brief.layers if brief and brief.layers else ())
        named = layers_of(trial, asked) or None
        image = next(iter(data.test))[0][:1]
        maps, unexplained = {}, ""
        try:
            maps = GradCAM(trial, named, reshape=reshape).sizes(image)
        except ValueError as error:
            if layers:
                raise
            warnings.warn(f"the report is without Grad-CAM: {error}", stacklevel=2)
            unexplained = str(error).split(";")[0]
        galleries = _galleries(trial, predictions, list(maps), reshape, brief)
        found = None
        if brief:
            found = audit(
                brief,
                history,
                trial,
                data,
                shown={kind: gallery["records"] for kind, gallery in galleries.items()},
                explained={kind: gallery["explained"] for kind, gallery in galleries.items()},
                maps=maps,
                notebook=notebook,
            )
        record = {
            "title": brief.title if brief else f"{history.settings['model']}, {len(history)} epochs",
            "objective": brief.objective if brief else "Train an image classifier and see what it learnt.",
            "author": (author or "").strip() or None,
            "remarks": (remarks or "").strip() or None,
            "settings": history.settings,
            "rows": history.rows,
            "results": results,
            "summary": _layers_table(trial, image),
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
            "layers_were_named": bool(named or getattr(trial, "cam_layer", None)),
            "norms": dict(norm_kinds(trial)),
            "parametrizations": dict(parametrizations(trial)),
            "versions": versions(),
            "command": commands_of(folder),
        }
        pages = page.render(record)
        record["figures"] = page.checksums(pages)
        save_verified(folder / RECORD, record)
        path = page.write_page(folder, pages)
    return Report(path, found, record)


def _check_arguments(run: Any, model: Any, data: Any, author: Any, remarks: Any) -> None:
    if not isinstance(run, str | Path):
        raise TypeError(f"run is the folder that fit(checkpoint=...) wrote, not {type(run).__name__}")
    check_model(model)
    check_data(data, "train", "test", "classes", "mean", "std")
    for name, text in (("author", author), ("remarks", remarks)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} is a text, not {text!r}")


def _check_own(folder: Path) -> dict:
    """Refuse to write over files that were not written here; return the record of the report before, if any."""
    page.check_own(folder)
    if not (folder / RECORD).exists():
        return {}
    try:
        return load_verified(folder / RECORD)
    except DamagedFileError as error:
        raise ValueError(f"{error}; rename or remove it, and it is written anew") from error


def _layers_table(model: nn.Module, image: Tensor) -> str:
    """Return the table of layers, or why there is none: a run is not without a report for that."""
    _, channels, height, width = image.shape
    try:
        return summary(model, (channels, height, width))
    except (ValueError, ModuleNotFoundError) as error:
        return str(error)


def _galleries(
    model: nn.Module, predictions: Predictions, layers: list[str], reshape: Callable | None, brief: Brief | None
) -> dict[str, dict]:
    """Return the hits and the mistakes to show, with the maps of the same records at the layers, if there are any."""
    galleries = {}
    correct, wrong = (brief.correct, brief.misclassified) if brief else (None, None)
    for records in (predictions.correct(max(SHOWN, correct or 0)), predictions.wrong(max(SHOWN, wrong or 0))):
        gallery: dict[str, Any] = {"records": records, "explained": [], "maps": {}, "true_maps": {}}
        if records and layers:
            cam, images = GradCAM(model, layers, reshape=reshape), torch.stack([record.image for record in records])
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
    counts = {name: count_drawn(getattr(data, name, None)) for name in ("train", "validation", "test")}
    names = {"classes": list(data.classes), "mean": list(data.mean), "std": list(data.std)}
    known = {name: count for name, count in counts.items() if count is not None}
    return {**names, "source": getattr(data, "source", ""), "images": known}
