"""The sections of a run's README, each from its record."""

import math
from statistics import median

from .cam_layer import LEAST_SIDE
from .markdown import escape, fence, table
from .names import plural
from .predictions import MISTAKES, Predictions
from .rules import FAIL, PASS


def summary(record: dict) -> str:
    """Return the table of the layers, and the kinds of normalization among them."""
    norms = ", ".join(f"{count} {kind}" for kind, count in record["norms"].items()) or "none"
    meaning = " (LayerNorm over channels, height and width)" if "GroupNorm of one group" in record["norms"] else ""
    counted = ", ".join(f"{count} {kind}" for kind, count in record.get("parametrizations", {}).items())
    weights = f" Parametrizations of weights: {escape(counted)}." if counted else ""
    return f"{fence(record['summary'])}\n\nNormalization layers: {escape(norms)}{meaning}.{weights}"


def plus_minus(accuracy: float, samples: int) -> float:
    """Return half the width in points of the 95% interval of an accuracy in percent; see `_wilson`."""
    return _wilson(accuracy, samples)[1]


def _wilson(accuracy: float, samples: int) -> tuple[float, float]:
    """Return the middle and half the width of the 95% interval of an accuracy in percent, as Wilson (1927) has it.

    (p + 1.96² / (2 n)) / (1 + 1.96² / n), and 1.96 / (1 + 1.96² / n) * sqrt(p (1 - p) / n + 1.96² / (4 n²)): of many
    hits and mistakes p and 1.96 sqrt(p (1 - p) / n).
    """
    share, z = accuracy / 100, 1.96
    whole = 1 + z**2 / samples
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2)) / whole
    return 100 * (share + z**2 / (2 * samples)) / whole, 100 * half


def results(record: dict) -> str:
    """Return the accuracies with their intervals, and the rules that the run breaks."""
    found, samples = record["results"], record["results"]["samples"]
    intervals = {which: _wilson(found[which]["accuracy"], samples) for which in ("best", "last")}
    # Of few mistakes, or hits, it reaches further to one side.
    lopsided = any(abs(mid - found[which]["accuracy"]) > 0.1 * half for which, (mid, half) in intervals.items())
    rows = [
        (
            f"{which} epoch, {found[which]['epoch']}",
            f"{found[which]['accuracy']:.2f}% "
            + (f"({max(mid - half, 0):.2f} to {min(mid + half, 100):.2f})" if lopsided else f"± {half:.2f}"),
        )
        for which, (mid, half) in intervals.items()
    ]
    as_asked = "as the assignments measure it, " if record["audit"] else ""
    if found["split"] == "test":
        chosen = (
            f"The best epoch was chosen on the test images themselves, {as_asked}so "
            "its accuracy is a little optimistic."
        )
    else:
        chosen = (
            f"The best epoch was chosen on {found['chosen_on']:,} held-out training images, of which it gets "
            f"{found['chosen_accuracy']:.2f}% right; the test images had no part in it."
        )
    accuracies = table(("epoch", f"accuracy on {samples:,} test images"), rows)
    source = record["data"]["source"]
    broken = [finding["rule"] for finding in record["audit"] if finding["verdict"] == FAIL]
    notes = [
        f"The images are: {escape(source)}." if source else "",
        f"{'In brackets stands' if lopsided else '± is half'} the 95% interval of a share measured on {samples:,} "
        f"images. {chosen} The galleries, the confusion matrix and Grad-CAM are of the best epoch's weights, which "
        f"were scored again for them: {found['recomputed']:.2f}%.",
        f"**Rules of the assignment that this run breaks: {escape(', '.join(broken))}** (see [Audit](#audit))."
        if broken
        else "",
    ]
    return "\n\n".join([accuracies, *filter(None, notes)])


def log(record: dict) -> str:
    """Return the log as `fit` printed it, without the bar's steps."""
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
    return fence("\n".join(lines)) + "\n\nFrom the record; the time of an epoch is that of its training and its test."


def curves(record: dict) -> str:
    """Return the figure of the curves, and how it can be that the test is ahead."""
    average = ", with the averaged weights" if record["settings"].get("ema") is not None else ""
    return (
        "![Loss and accuracy by epoch](figures/curves.png)\n\nTraining is scored batch by batch, on the images as the "
        f"training loader gives them and while the weights change; the {record['results']['split']} images are scored "
        f"after each epoch{average}. So they may be ahead."
    )


def gallery(record: dict, kind: str, name: str) -> str:
    """Return which images of a kind are shown, and their figure."""
    records = record["galleries"][kind]["records"]
    if not records:
        return f"There are none: no test image was {kind}."
    which = "most confident first" if kind == MISTAKES else "surest first"
    indices = ", ".join(str(fields["index"]) for fields in records)
    return f"{len(records)} test images, {which}; indices {indices}.\n\n![{kind} images](figures/{name}.png)"


def gradcam(record: dict, kind: str, name: str) -> str:
    """Return what the Grad-CAM figure of a gallery shows, or why there is none."""
    if not record["galleries"][kind]["records"]:
        return ""
    if not record["maps"]:
        return f"There is none: {escape(record['unexplained'])}."
    sizes = ", ".join(f"{layer} {height}x{width}" for layer, (height, width) in record["maps"].items())
    shown = (
        "Each row is one image: as it is, then overlay and map for the predicted class at each layer."
        if len(record["maps"]) > 1
        else "Each image is followed by the overlay for the predicted class"
        + (" and by that for the true one." if kind == MISTAKES else ".")
    )
    if not record["layers_were_named"]:
        shown += f" The layer is the deepest whose map has at least {LEAST_SIDE}x{LEAST_SIDE} pixels."
    return (
        f"The same images in the same order. {shown} Dark violet is 0, yellow 1. Maps before they are enlarged: "
        f"{escape(sizes)}.\n\n![Grad-CAM of the {kind} images](figures/{name}_gradcam.png)"
    )


def predictions_of(record: dict) -> Predictions:
    """Return what the test images were predicted to be."""
    return Predictions(None, **record["predictions"])


def confusion(record: dict) -> str:
    """Return the accuracy of each class and what it is most often taken for."""
    predictions, classes = predictions_of(record), record["data"]["classes"]
    counts, accuracies, rows = predictions.confusion(), predictions.class_accuracy().tolist(), []
    mistakes = counts.clone().fill_diagonal_(0)
    for name, images, accuracy, others in zip(classes, counts, accuracies, mistakes, strict=True):
        most = int(others.argmax())
        taken = f"{classes[most]} ({int(others[most])})" if others.any() else "nothing else"
        rows.append((name, int(images.sum()), "-" if math.isnan(accuracy) else f"{accuracy:.2f}%", taken))
    columns = ("class", "test images", "accuracy", "most often taken for")
    return f"{table(columns, rows)}\n\n![Confusion matrix](figures/confusion.png)"


def remarks(text: str) -> str:
    """Quote the author's Markdown line by line, so that none of it passes for the report's own."""
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def audit(findings: list[dict]) -> str:
    """Return the verdicts on the rules, or nothing where there were none to judge by."""
    if not findings:
        return ""
    passed = sum(finding["verdict"] == PASS for finding in findings)
    rows = [[finding[key] for key in ("rule", "required", "found", "verdict")] for finding in findings]
    verdicts = table(("rule", "required", "found in the run and the model", "verdict"), rows)
    return f"{passed} of {len(findings)} rules pass.\n\n{verdicts.replace('| FAIL |', '| **FAIL** |')}"


def made(record: dict) -> str:
    """Return the command, the machines, the time and the versions."""
    settings, seconds = record["settings"], [row["seconds"] for row in record["rows"]]
    minutes, rest = divmod(round(sum(seconds)), 60)
    duration = f"{minutes} min {rest:02d} s"
    if minutes >= 60:
        hours, minutes = divmod(round(sum(seconds) / 60), 60)
        duration = f"{hours} h {minutes:02d} min"
    epochs = plural(len(seconds), "epoch")
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    found = {part: settings[f"{part}_loader"].get("fingerprint") for part in ("train", "test")}
    prints = ", ".join(f"{part} {print_}" for part, print_ in found.items() if print_)
    places = [("trained on", settings)]
    places += [(f"after epoch {place['after']} on", place) for place in settings.get("continued", [])]
    rows = [
        *((when, _machine(place)) for when, place in places),
        ("time", f"{duration} for {epochs}, tests included; median epoch {median(seconds):.1f} s"),
        ("report made with", packages),
        *([("fingerprint of the data", prints)] if prints else []),
    ]
    commands = (record["command"] or "").strip()
    how = "By a call of `fit`, in a notebook or a script."
    if commands:
        how = f"By {'these commands' if chr(10) in commands else 'this command'}:\n\n{fence(record['command'])}"
    return (
        f"{how}\n\n{table(('what', 'value'), rows)}\n\nEvery figure and number here is read from the run's record, "
        "`report.pt` and `history.json`, written by the run itself."
    )


def _machine(place: dict) -> str:
    day = place.get("date", "day not recorded")
    threads = plural(place["threads"], "thread")
    machine = f"{place['machine']}, {threads}, {place['device']}"
    return f"{day}, {machine}; Python {place['python']}, torch {place['torch']}"
