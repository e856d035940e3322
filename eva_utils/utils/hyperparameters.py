"""The table of what was chosen for a run, from its record."""

from collections import Counter
from collections.abc import Iterable

from .markdown import table
from .names import enumerated, plural
from .rules import course, loss_options, options, steps_of

_INSIDE = ("class", "default_min_lr", "min_lrs", "eps")  # of a scheduler, and not what one gives it


def hyperparameters(record: dict) -> str:
    """Return the table of what was chosen for the run."""
    settings, data = record["settings"], record["data"]
    trained, optimizer, schedule = settings["train_loader"], settings["optimizer"], settings["scheduler"]
    steps = steps_of(trained.get("transform", ""))
    groups = [group for name, group in optimizer.items() if name != "class"]
    one_cycle = schedule["class"] == "OneCycleLR"
    cycle = f"OneCycleLR of {schedule['total_steps']:,} steps: {course(settings, record['rows'])}" if one_cycle else ""
    of_torch = settings.get("torch_seed", 2**32)
    seeds = {
        "torch before the run": of_torch if of_torch < 2**32 else None,  # larger where nothing was seeded
        "the order and the augmentation": trained.get("seed"),
        "the run": settings["seed"],
    }
    warmup = settings.get("warmup", 0)
    counts = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    rows: list[tuple[str, object]] = [
        ("data", ": ".join(filter(None, [data["source"] or "images", counts]))),
        ("classes", enumerated(data["classes"])),
        (
            "training transforms",
            ", ".join(filter(None, steps)) or ("none" if "transform" in trained else "not recorded"),
        ),
        ("normalization of pixels", f"mean {_rounded(data['mean'])}, standard deviation {_rounded(data['std'])}"),
        ("batch size", trained.get("batch_size") or "not recorded"),
        ("epochs", len(record["rows"])),
        ("optimizer", optimizer["class"] + _groups(groups)),
        ("learning rate schedule", cycle or _schedule(schedule)),
        ("warmup", plural(warmup, "epoch") if warmup else "none"),
        ("averaged weights", _if_set("decay", settings.get("ema"))),
        ("gradient clipping", _if_set("norm", settings.get("clip"))),
        ("loss", settings["criterion"]["class"] + loss_options(settings["criterion"])),
        ("model", f"{settings['model']}, {settings['parameters']:,} parameters"),
        *([("weights at the start", "those of an earlier run")] if settings.get("trained_before") else []),
        ("precision", settings["precision"]),
        (
            "seed",
            ", ".join(f"{seed} of {part}" for part, seed in seeds.items() if seed is not None) or "not recorded",
        ),
    ]
    return table(("parameter", "value"), rows)


def _schedule(schedule: dict) -> str:
    """Return a scheduler with its options, of one that holds others those too."""
    held = [value for value in schedule.values() if isinstance(value, dict)]
    ran = [name for name, value in schedule.items() if name not in _INSIDE and not isinstance(value, dict)]
    inner = f" of {', '.join(map(_schedule, held))}" if held else ""
    return schedule["class"] + options(schedule, ran) + inner


def _groups(groups: list[dict]) -> str:
    """Return the options of an optimizer's groups; of how many tensors, where they differ."""
    counts: Counter[str] = Counter()
    for group in groups:
        shown = options(group, ("lr", "max_lr", "momentum", "betas", "weight_decay", "nesterov"))
        counts[shown] += group["parameters"]
    if len(counts) == 1:
        return next(iter(counts))
    return ": " + "; ".join(f"{shown} of {plural(count, 'tensor')}" for shown, count in counts.items())


def _if_set(name: str, value: float | None) -> str:
    return "none" if value is None else f"{name} {value:g}"


def _rounded(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
