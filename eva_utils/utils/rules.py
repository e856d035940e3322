"""One function for each kind of rule an assignment has: what was found in a run, and the verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from .augmentation import augmentation_checks
from .names import plural
from .notebook import cells_of, cells_run_here, definitions
from .parts import layers_of
from .per_image import PerImage
from .plateau import replay
from .predictions import HITS

PASS, FAIL, UNCHECKED = "pass", "FAIL", "not checked"


@dataclass(frozen=True)
class Finding:
    """One rule: what is required, what was found, and the verdict "pass", "FAIL" or "not checked"."""

    rule: str
    required: str
    found: str
    verdict: str


def judged(rule: str, required: str, found: str, passed: bool) -> Finding:
    """Return a finding of something that was checked."""
    return Finding(rule, required, found, PASS if passed else FAIL)


def equal(rule: str, required: object, found: object, more: str = "") -> list[Finding]:
    """Compare a value with the required one, which may be None: then there is no rule."""
    if required is None:
        return []
    if found is None:
        return [Finding(rule, _listed(required), "nothing on record", UNCHECKED)]
    return [judged(rule, _listed(required), _listed(found) + more, found == required)]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def options(part: dict, names: Iterable[str]) -> str:
    """Return those options of an optimizer's group or a scheduler that it has, in parentheses."""
    kept = {name: part[name] for name in names if name in part and part[name] not in (None, [], {})}
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in kept.items()}
    return "(" + ", ".join(f"{name}={value}" for name, value in shown.items()) + ")"


def loss_options(criterion: dict) -> str:
    """Return a loss's class weights, label smoothing and what a function was given, in parentheses, or nothing."""
    given, options = criterion.get("arguments", []), []
    for name in dict.fromkeys(["weight", "label_smoothing", *given]):
        value = criterion.get(name)
        if isinstance(value, list):
            shown = [f"{item:.4g}" if isinstance(item, int | float) else str(item) for item in value[:10]]
            options.append(f"{name}=[{', '.join(shown + ['…'] * (len(value) > 10))}]")
        elif value or (name in given and value is not None):
            options.append(f"{name}={value}")
    return f"({', '.join(options)})" if options else ""


def epochs(required: int, settings: dict, rows: list[dict]) -> Finding:
    """Count the epochs, which are to be all that the weights had."""
    before = settings.get("trained_before", False)
    found = f"{len(rows)}{', after those of an earlier run' if before else ''}"
    return judged("epochs", str(required), found, len(rows) == required and not before)


def accuracy(required: float, best: dict, of_these: bool) -> Finding:
    """Compare the best epoch's recorded accuracy with the least one allowed, if it is of the test images."""
    rule, asked = "test accuracy", f"at least {required:g}%"
    found = f"{best['test_accuracy']:.2f}% at epoch {best['epoch']}"
    if not of_these:
        return Finding(rule, asked, f"{found}, of other images than data.test", UNCHECKED)
    return judged(rule, asked, found, best["test_accuracy"] >= required)


def learning_rate(required: str, settings: dict, rows: list[dict]) -> Finding:
    """Compare the schedule's class; ReduceLROnPlateau is replayed as well and must give every recorded rate."""
    rule, found = "learning rate", settings["scheduler"]["class"]
    if required != "ReduceLROnPlateau":
        return judged(rule, required, found, found == required)
    asked = f"{required} makes every change of it"
    if found != required:
        return judged(rule, asked, found, False)
    warmup = settings.get("warmup", 0)
    if warmup >= len(rows):
        return judged(rule, asked, f"the warmup takes all of the {len(rows)} epochs", False)
    expected = replay(settings, rows)
    for row, rate in zip(rows, expected, strict=True):
        if not math.isclose(row["lr"], rate, rel_tol=1e-6):
            return judged(rule, asked, f"epoch {row['epoch']} ran at {row['lr']:g}; {required} says {rate:g}", False)
    cuts = [row["epoch"] for before, row in pairwise(rows[max(warmup - 1, 0) :]) if row["lr"] != before["lr"]]
    made = f"cut from epoch {', '.join(map(str, cuts))} on" if cuts else "never cut"
    after = f" after a warmup of {plural(warmup, 'epoch')}" if warmup else ""
    start = settings["optimizer"]["group 0"]["lr"]
    return judged(rule, asked, f"{start:g}{after}, {made}; replayed on the record, every epoch agrees", True)


def course(settings: dict, rows: list[dict]) -> str:
    """Say where the rate began, when it was highest at the end of an epoch, and where it ended."""
    highest = max(rows, key=lambda row: row["lr"])
    start = settings["optimizer"]["group 0"]["lr"]
    return f"{start:.3g} at first, {highest['lr']:.3g} after epoch {highest['epoch']}, {rows[-1]['lr']:.3g} at last"


def one_cycle(peak_epoch: int, settings: dict, rows: list[dict]) -> Finding:
    """Look for the epoch that ends at the highest rate, and for a last rate that is no lower than the first."""
    rates = [row["lr"] for row in rows]
    start, highest = settings["optimizer"]["group 0"]["lr"], max(rates)
    epoch, found = rows[rates.index(highest)]["epoch"], course(settings, rows)
    passed = epoch == peak_epoch and highest > max(start, rates[-1]) and rates[-1] >= start * (1 - 1e-6)
    return judged("one cycle", f"highest after epoch {peak_epoch}, at last no lower than at first", found, passed)


def steps_of(recorded: str) -> list[str]:
    """Return the steps of a transform on record, without Normalize."""
    return [step for step in recorded.split(" -> ") if not step.startswith("Normalize(")]


def transforms(required: tuple[str, ...], recorded: str | None, loader: Any) -> Finding:
    """Compare the recorded steps with the required ones, and see on real images what each of them changes."""
    rule, asked = "training transforms", ", ".join(required) + ", and nothing else" if required else "none"
    if recorded is None or not hasattr(loader, "transform"):
        return Finding(rule, asked, "the training loader keeps no record of its transforms", UNCHECKED)
    steps = steps_of(recorded)
    found = ", ".join(steps) or "none"
    if repr(loader.transform) != recorded:
        return judged(rule, asked, f"{found}; data.train now has {loader.transform!r}", False)
    checks = augmentation_checks(loader)
    idle = [check for check in checks if check.passed is False]
    for check in idle or checks:
        found += f"; {check.name.removesuffix(' changes pixels')}: {check.found}"
    same, own = tuple(steps) == required, any(isinstance(part, PerImage) for part in loader.transform)
    if own and required and not same and not idle:
        return Finding(rule, asked, f"{found}; whether a pipeline of one's own does the same is not known", UNCHECKED)
    return judged(rule, asked, found, same and not idle)


def gallery(
    kind: str, required: int, shown: Mapping[str, Sequence[Any]] | None, explained: Mapping[str, Sequence[Any]] | None
) -> Finding:
    """Compare how many records are shown with how many are required, and their indices with those explained."""
    rule, asked = f"{kind} images", f"{required}, and Grad-CAM of the same"
    if shown is None or kind not in shown:
        return Finding(rule, asked, "no gallery was given", UNCHECKED)
    records = shown[kind]
    if not records:
        none = getattr(records, "total", None) == 0
        return Finding(rule, asked, "there is none to show", PASS if none else UNCHECKED)
    if explained is None:
        return Finding(rule, asked, f"{len(records)} shown, no Grad-CAM was given", UNCHECKED)
    indices, others = _indices(records), _indices(explained.get(kind, ()))
    if len(set(indices)) < len(indices):
        return judged(rule, asked, "the same image more than once", False)
    strays = [record.index for record in records if (record.predicted == record.target) != (kind == HITS)]
    if strays:
        return judged(rule, asked, f"#{strays[0]} is not {kind}", False)
    if not others:
        return judged(rule, asked, f"{len(records)} shown, Grad-CAM explains none", False)
    all_there_are = len(records) < required and getattr(records, "total", None) == len(records)
    same = f"Grad-CAM of {'the same' if indices == others else 'other'} indices"
    found = f"{len(records)}{', all there are' if all_there_are else ''}; {same}"
    return judged(rule, asked, found, indices == others and (len(records) >= required or all_there_are))


def _indices(records: Sequence[Any]) -> list[int]:
    """Return the indices of records, or indices as they are."""
    return [getattr(record, "index", record) for record in records]


def layers(required: tuple[str, ...], model: nn.Module) -> Finding:
    """See whether a network has the layers that Grad-CAM is to be asked of."""
    there = layers_of(model, required)
    found = ", ".join(there) or "none of them"
    if len(there) < len(required):
        found += f"; the network's parts are {', '.join(name for name, _ in model.named_children())}"
    return judged("Grad-CAM layers", ", ".join(required), found, len(there) == len(required))


def map_sizes(least: int, maps: Mapping[str, tuple[int, int]] | None) -> Finding:
    """Compare the sides of the Grad-CAM maps with the least one allowed."""
    rule, asked = "Grad-CAM maps", f"at least {least}x{least} pixels"
    if not maps:
        return Finding(rule, asked, "no map was given", UNCHECKED)
    found = ", ".join(f"{layer} {height}x{width}" for layer, (height, width) in maps.items())
    return judged(rule, asked, found, all(min(size) >= least for size in maps.values()))


def plain_notebook(notebook: str | Path | None) -> Finding:
    """Look for definitions of functions and classes in a notebook's cells."""
    rule, asked = "notebook", "defines no function and no class"
    where = "this notebook since its start" if notebook is None else Path(notebook).name
    cells = cells_run_here() if notebook is None else cells_of(notebook)
    if cells is None:
        return Finding(rule, asked, "the run was not made in a notebook, and none was given", UNCHECKED)
    defined: list[str] = []
    unread = ""
    for number, cell in enumerate(cells, start=1):
        try:
            defined += definitions(cell)
        except SyntaxError:
            unread = unread or f"code cell {number} is no Python; it begins {cell.strip().splitlines()[0][:40]!r}"
    if unread and not defined:
        return Finding(rule, asked, f"{where}: {unread}", UNCHECKED)
    moved = "; move that to a .py file, import it, restart and run all cells"
    found = f"defines {', '.join(defined)}{moved}" if defined else f"{len(cells)} code cells, none defines any"
    return judged(rule, asked, f"{where}: {found}", not defined)
