"""The README of a run, text and figures, from its record alone."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from . import figures, plotting
from .cam_layer import LEAST_SIDE
from .history import History
from .names import plural
from .predictions import HITS, MISTAKES, Predictions, Record, Records
from .rules import FAIL, PASS, course, smoothing
from .seal import is_sealed, seal_png, seal_text
from .verified import write_atomic

FIGURES = ("curves", "confusion", "correct", "correct_gradcam", "misclassified", "misclassified_gradcam")


def check_own(folder: Path) -> None:
    """Refuse to write over a README.md or a figure that was not written here, or was edited since.

    Raises:
        ValueError: there is such a file.
    """
    for path in (folder / "README.md", *(folder / "figures" / f"{name}.png" for name in FIGURES)):
        if path.exists() and not is_sealed(path):
            raise ValueError(f"{path} was edited or written by hand; rename it, and the report is written beside it")


def render(record: dict) -> dict[str, bytes]:
    """Return the files of a report, by their path in its folder: the same record gives the same bytes."""
    with figures.default_style():
        drawn = _figures(record)
        pages = {f"figures/{name}.png": seal_png(figures.png_bytes(figure)) for name, figure in drawn.items()}
    return pages | {"README.md": seal_text(_text(record))}


def write_page(folder: Path, pages: dict[str, bytes]) -> Path:
    """Write what `render` returned, the README last, and return its path; figures of an earlier report go."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for old in (*figures.glob(".*.tmp"), *(figures / f"{name}.png" for name in FIGURES)):
        if f"figures/{old.name}" not in pages:
            old.unlink(missing_ok=True)
    for name, content in pages.items():
        write_atomic(folder / name, content)
    return folder / "README.md"


def _figures(record: dict) -> dict[str, Any]:
    data = SimpleNamespace(**record["data"])
    figures = {
        "curves": plotting.plot_history(History(record["rows"]), record["results"]["split"]),
        "confusion": plotting.plot_confusion(_predictions(record), data),
    }
    for name, kind in (("correct", HITS), ("misclassified", MISTAKES)):
        gallery = record["galleries"][kind]
        if gallery["records"]:
            said = [Record(**fields) for fields in gallery["records"]]
            records = Records(said, kind, gallery["asked"], gallery["total"])
            figures[name] = plotting.plot_images(records, data)
            if gallery["maps"]:
                maps = gallery["maps"], gallery["true_maps"], record["maps"]
                figures[f"{name}_gradcam"] = plotting.draw_gradcam(records, data, *maps)
    return figures


def _predictions(record: dict) -> Predictions:
    return Predictions(None, **record["predictions"])


def _text(record: dict) -> str:
    sections = {
        "Objective": escape(record["objective"]),
        "Parameters and hyperparameters": _parameters(record),
        "Model summary": _summary(record),
        "Results": _results(record),
        "Training log": _fence("\n".join(_log(record)))
        + "\n\nFrom the record; the time of an epoch is that of its training and its test.",
        "Curves": "![Loss and accuracy by epoch](figures/curves.png)",
        "Correctly classified images": _gallery(record, HITS, "correct"),
        "Grad-CAM of the correctly classified images": _gradcam(record, HITS, "correct"),
        "Misclassified images": _gallery(record, MISTAKES, "misclassified"),
        "Grad-CAM of the misclassified images": _gradcam(record, MISTAKES, "misclassified"),
        "Confusion matrix": _confusion(record),
        "Audit": _audit(record["audit"]),
        "How this was made": _made(record),
    }
    kept = {title: text for title, text in sections.items() if text}
    contents = "\n".join(f"- [{title}](#{title.lower().replace(' ', '-')})" for title in kept)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in kept.items())
    return f"# {escape(record['title'])}\n\n## Contents\n\n{contents}\n\n{body}\n\n"


def escape(text: object) -> str:
    """Return text that Markdown and HTML show as it is: what they could read as markup becomes an entity."""
    plain = re.sub(r"\s+", " ", str(text)).strip()
    markup = r"[^\w\s,.:;()%/=+±→'-]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//)"
    plain = re.sub(markup, lambda match: f"&#{ord(match[0])};", plain)
    # What begins a list or underlines a heading.
    return re.sub(r"^(\d*)([-+.)](?=\s|$)|[-=](?=[-=\s]*$))", lambda match: f"{match[1]}&#{ord(match[2])};", plain)


def _fence(text: str) -> str:
    """Return text as a code block that no run of backticks in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *[[escape(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _options(part: dict, names: Iterable[str]) -> str:
    kept = {name: part[name] for name in names if name in part and part[name] not in (None, [], {})}
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in kept.items()}
    return "(" + ", ".join(f"{name}={value}" for name, value in shown.items()) + ")"


def _parameters(record: dict) -> str:
    settings, data = record["settings"], record["data"]
    trained, optimizer, schedule = settings["train_loader"], settings["optimizer"], settings["scheduler"]
    steps = [step for step in trained.get("transform", "").split(" -> ") if not step.startswith("Normalize(")]
    groups = [group for name, group in optimizer.items() if name != "class"]
    one_cycle = schedule["class"] == "OneCycleLR"
    cycle = f"OneCycleLR of {schedule['total_steps']:,} steps: {course(settings, record['rows'])}" if one_cycle else ""
    ran = {name: schedule[name] for name in schedule if name not in ("class", "default_min_lr", "min_lrs", "eps")}
    of_torch = settings.get("torch_seed", 2**32)
    seeds = {
        "torch before the run": of_torch if of_torch < 2**32 else None,  # larger where nothing was seeded
        "the order and the augmentation": trained.get("seed"),
        "the run": settings["seed"],
    }
    warmup = settings.get("warmup", 0)
    counts = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    rows: list[tuple[str, object]] = [
        ("data", f"{data['source'] or 'images'}: {counts}"),
        ("classes", ", ".join(data["classes"])),
        (
            "training transforms",
            ", ".join(filter(None, steps)) or ("none" if "transform" in trained else "not recorded"),
        ),
        ("normalization of pixels", f"mean {_rounded(data['mean'])}, standard deviation {_rounded(data['std'])}"),
        ("batch size", trained.get("batch_size") or "not recorded"),
        ("epochs", len(record["rows"])),
        ("optimizer", optimizer["class"] + _groups(groups)),
        ("learning rate schedule", cycle or schedule["class"] + _options(ran, ran)),
        ("warmup", plural(warmup, "epoch") if warmup else "none"),
        ("averaged weights", _if_set("decay", settings.get("ema"))),
        ("gradient clipping", _if_set("norm", settings.get("clip"))),
        ("loss", settings["criterion"]["class"] + smoothing(settings["criterion"])),
        ("model", f"{settings['model']}, {settings['parameters']:,} parameters"),
        *([("weights at the start", "those of an earlier run")] if settings.get("trained_before") else []),
        ("precision", settings["precision"]),
        (
            "seed",
            ", ".join(f"{seed} of {part}" for part, seed in seeds.items() if seed is not None) or "not recorded",
        ),
    ]
    return _table(("parameter", "value"), rows)


def _groups(groups: list[dict]) -> str:
    """Return the options of an optimizer's groups; of how many tensors, where they differ."""
    counts: dict[str, int] = {}
    for group in groups:
        options = _options(group, ("lr", "max_lr", "momentum", "betas", "weight_decay", "nesterov"))
        counts[options] = counts.get(options, 0) + group["parameters"]
    if len(counts) == 1:
        return next(iter(counts))
    return ": " + "; ".join(f"{options} of {plural(count, 'tensor')}" for options, count in counts.items())


def _summary(record: dict) -> str:
    norms = ", ".join(f"{count} {kind}" for kind, count in record["norms"].items()) or "none"
    meaning = " (LayerNorm over channels, height and width)" if "GroupNorm of one group" in record["norms"] else ""
    return f"{_fence(record['summary'])}\n\nNormalization layers: {escape(norms)}{meaning}."


def _if_set(name: str, value: float | None) -> str:
    return "none" if value is None else f"{name} {value:g}"


def _rounded(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def plus_minus(accuracy: float, samples: int) -> float:
    """Return half the width in points of the 95% interval of an accuracy in percent, as Wilson (1927) has it.

    1.96 / (1 + 1.96² / n) * sqrt(p (1 - p) / n + 1.96² / (4 n²)): of many images that is 1.96 sqrt(p (1 - p) / n).
    """
    share, z = accuracy / 100, 1.96
    return 100 * z / (1 + z**2 / samples) * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))


def _results(record: dict) -> str:
    results, samples = record["results"], record["results"]["samples"]
    rows = [
        (
            f"{which} epoch, {results[which]['epoch']}",
            f"{results[which]['accuracy']:.2f}% ± {plus_minus(results[which]['accuracy'], samples):.2f}",
        )
        for which in ("best", "last")
    ]
    if results["split"] == "test":
        chosen = (
            "The best epoch was chosen on the test images themselves, as the assignments measure it, so its accuracy "
            "is a little optimistic."
        )
    else:
        chosen = (
            f"The best epoch was chosen on {results['chosen_on']:,} held-out training images, of which it gets "
            f"{results['chosen_accuracy']:.2f}% right; the test images had no part in it."
        )
    table = _table(("epoch", f"accuracy on {samples:,} test images"), rows)
    source = record["data"]["source"]
    broken = [finding["rule"] for finding in record["audit"] if finding["verdict"] == FAIL]
    notes = [
        f"The images are: {escape(source)}." if source else "",
        f"± is half the 95% interval of a share measured on {samples:,} images. {chosen} The galleries, the confusion "
        f"matrix and Grad-CAM are of the best epoch's weights, which were scored again for them: "
        f"{results['recomputed']:.2f}%.",
        f"**Rules of the assignment that this run breaks: {escape(', '.join(broken))}** (see [Audit](#audit))."
        if broken
        else "",
    ]
    return "\n\n".join([table, *filter(None, notes)])


def _log(record: dict) -> list[str]:
    batches, tested = record["settings"]["batches"], record["results"]["chosen_on"]
    lines = []
    for row in record["rows"]:
        minutes, seconds = divmod(round(row["seconds"]), 60)
        bar = f"100%|{'█' * 10}| {batches}/{batches} [{minutes:02d}:{seconds:02d}]"
        accuracy = row["test_accuracy"]
        lines += [
            f"EPOCH: {row['epoch']}",
            f"Loss={row['train_loss']:.4f} Batch_id={batches - 1} LR={row['lr']:.5f} "
            f"Accuracy={row['train_accuracy']:.2f}: {bar}",
            f"{record['results']['split'].capitalize()} set: Average loss: {row['test_loss']:.4f}, "
            f"Accuracy: {round(accuracy * tested / 100)}/{tested} ({accuracy:.2f}%)",
        ]
    return lines


def _gallery(record: dict, kind: str, name: str) -> str:
    records = record["galleries"][kind]["records"]
    if not records:
        return f"There are none: no test image was {kind}."
    which = "most confident first" if kind == MISTAKES else "surest first"
    indices = ", ".join(str(fields["index"]) for fields in records)
    return f"{len(records)} test images, {which}; indices {indices}.\n\n![{kind} images](figures/{name}.png)"


def _gradcam(record: dict, kind: str, name: str) -> str:
    if not record["galleries"][kind]["records"]:
        return ""
    if not record["maps"]:
        return f"There is none: {escape(record['unexplained'])}."
    sizes = ", ".join(f"{layer} {height}x{width}" for layer, (height, width) in record["maps"].items())
    shown = (
        "Each row is one image: as it is, then overlay and map for the predicted class at each layer."
        if len(record["maps"]) > 1
        else "Each image is followed by the overlay for the predicted class and, of a mistake, for the true one."
    )
    if not record["layers_were_named"]:
        shown += f" The layer is the deepest whose map has at least {LEAST_SIDE}x{LEAST_SIDE} pixels."
    return (
        f"The same images in the same order. {shown} Dark blue is 0, yellow 1. Maps before they are enlarged: "
        f"{escape(sizes)}.\n\n![Grad-CAM of the {kind} images](figures/{name}_gradcam.png)"
    )


def _confusion(record: dict) -> str:
    predictions, classes = _predictions(record), record["data"]["classes"]
    counts = predictions.confusion()
    rows = []
    for place, (name, accuracy) in enumerate(zip(classes, predictions.class_accuracy().tolist(), strict=True)):
        others = counts[place].clone()
        others[place] = 0
        most = int(others.argmax())
        taken = f"{classes[most]} ({int(others[most])})" if others.any() else "nothing else"
        rows.append((name, int(counts[place].sum()), "-" if math.isnan(accuracy) else f"{accuracy:.2f}%", taken))
    table = _table(("class", "test images", "accuracy", "most often taken for"), rows)
    return f"{table}\n\n![Confusion matrix](figures/confusion.png)"


def _audit(findings: list[dict]) -> str:
    if not findings:
        return ""
    passed = sum(finding["verdict"] == PASS for finding in findings)
    rows = [[finding[key] for key in ("rule", "required", "found", "verdict")] for finding in findings]
    table = _table(("rule", "required", "found in the run and the model", "verdict"), rows)
    return f"{passed} of {len(findings)} rules pass.\n\n{table.replace('| FAIL |', '| **FAIL** |')}"


def _machine(place: dict) -> str:
    day = place.get("date", "day not recorded")
    threads = plural(place["threads"], "thread")
    machine = f"{place['machine']}, {threads}, {place['device']}"
    return f"{day}, {machine}; Python {place['python']}, torch {place['torch']}"


def _made(record: dict) -> str:
    settings, seconds = record["settings"], [row["seconds"] for row in record["rows"]]
    hours, rest = divmod(round(sum(seconds)), 3600)
    duration = f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
    epochs = plural(len(seconds), "epoch")
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    prints = ", ".join(f"{part} {settings[f'{part}_loader'].get('fingerprint')}" for part in ("train", "test"))
    places = [("trained on", settings)]
    places += [(f"after epoch {place['after']} on", place) for place in settings.get("continued", [])]
    rows = [
        *((when, _machine(place)) for when, place in places),
        ("time", f"{duration} for {epochs}, tests included; median epoch {median(seconds):.1f} s"),
        ("report made with", packages),
        ("fingerprint of the data", prints),
    ]
    commands = (record["command"] or "").strip()
    how = "By a call of `fit`, in a notebook or a script."
    if commands:
        how = f"By {'these commands' if chr(10) in commands else 'this command'}:\n\n{_fence(record['command'])}"
    return (
        f"{how}\n\n{_table(('what', 'value'), rows)}\n\nEvery figure and number here is read from the run's record, "
        "`report.pt` and `history.json`, written by the run itself."
    )
