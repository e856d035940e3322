"""The record of a run: one row an epoch, and the settings that made it."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .names import plural
from .parts import count_drawn, count_images, is_shuffled, norm_kinds, own_generators, parametrizations

# What a scheduler counts as it goes, and what only says how a step is computed.
_RUNNING = {"best", "num_bad_epochs", "cooldown_counter", "last_epoch", "T_cur", "T_i", "training"}
_LARGEST = 1000  # numbers in an array that is an option
HOW = {"foreach", "fused", "capturable", "differentiable"}


@dataclass(repr=False)
class History:
    """What `fit` returns.

    Attributes:
        rows: one dict an epoch: "epoch" (from 1), "train_loss", "train_accuracy", "test_loss",
            "test_accuracy", "lr" (of the epoch's last step), "seconds" (training and testing).
            Losses are means over samples, weighted as the loss weights them; accuracies percentages of all samples.
        settings: model, optimizer, scheduler, criterion, precision, loaders, seeds, versions and hardware.
    """

    rows: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        best = f", best {self.best['test_accuracy']:.2f}% at epoch {self.best['epoch']}" if self.rows else ""
        return f"History({plural(len(self.rows), 'epoch')}{best})"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best(self) -> dict:
        """The row with the highest test accuracy, the first of equals.

        Raises:
            ValueError: no epoch has finished.
        """
        if not self.rows:
            raise ValueError("no epoch has finished, so there is no best one")
        return max(self.rows, key=lambda row: row["test_accuracy"])

    @property
    def start_rates(self) -> list[float]:
        """The learning rate of each group of the optimizer as the run began."""
        optimizer = self.settings["optimizer"]
        return [group["lr"] for name, group in optimizer.items() if name != "class"]

    def take_up(self, record: dict, epochs: int) -> None:
        """Go on with the record of a run on disk, which is to have so many epochs or has more."""
        self.rows, self.settings = record["rows"], record["settings"]
        self.settings["epochs"] = max(epochs, len(self))

    def note_machine(self, machine: dict) -> None:
        """Note that the run goes on elsewhere, unless it is where it was; "continued" lists the changes."""
        places = [self.settings, *self.settings.get("continued", [])]
        if self.rows and any(places[-1].get(name) != value for name, value in machine.items()):
            self.settings["continued"] = [*places[1:], {"after": len(self.rows), **machine}]

    def to_json(self) -> str:
        """Return the record as JSON text, a line for each row."""
        rows = ",\n".join("  " + json.dumps(row) for row in self.rows)
        settings = json.dumps(self.settings, indent=1)
        return f'{{"settings": {settings},\n"rows": [\n{rows}\n]}}\n'

    @classmethod
    def load(cls, run: str | Path) -> "History":
        """Read the record of a run from the folder that `fit(checkpoint=...)` wrote.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: its history.json is something else.
        """
        path = Path(run) / "history.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give the folder that fit(checkpoint=...) wrote")
        return cls.from_json(path.read_text(encoding="utf-8"))

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        try:
            record = json.loads(text)
            rows, settings = list(record["rows"]), dict(record["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"this is not the record of a run, the text of a history.json ({error!r}); for a folder there is "
                "History.load"
            ) from None
        return cls(rows=rows, settings=settings)


def describe_run(
    model: Any, optimizer: Any, scheduler: Any, criterion: Any, train_loader: Any, test_loader: Any
) -> dict[str, Any]:
    """Return what makes a run, as plain values: the class and the options of each of its parts."""
    groups = {
        f"group {number}": {"parameters": len(group["params"]), **_plain(group, HOW)}
        for number, group in enumerate(optimizer.param_groups)
    }
    return {
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "norms": dict(norm_kinds(model)),
        "parametrizations": dict(parametrizations(model)),
        "optimizer": {"class": type(optimizer).__name__, **groups},
        "scheduler": _describe_scheduler(scheduler),
        "criterion": describe_criterion(criterion),
        "batches": len(train_loader),
        "train_loader": describe_loader(train_loader),
        "test_loader": describe_loader(test_loader),
    }


def describe_layers(model: Any) -> dict[str, Any]:
    """Return the class of each module without submodules, by its name, and the options in its `__constants__`.

    A layer whose weights are parametrized counts as one without, by another name.
    """
    described = {}
    for name, layer in model.named_modules():
        held = [child for child, _ in layer.named_children()]
        if held in ([], ["parametrizations"]):
            options = {option: getattr(layer, option, None) for option in getattr(layer, "__constants__", ())}
            kind = "parametrized layer" if held else "layer"  # the records of earlier versions have the second alone
            described[f"{kind} {name}"] = {"class": type(layer).__name__, **_plain(options, {"inplace"})}
    return described


def _describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return class and options, of one that holds others theirs too; what runs on with the epochs is left out."""
    options = {name: value for name, value in vars(scheduler).items() if name != "milestones"}
    milestones = getattr(scheduler, "milestones", getattr(scheduler, "_milestones", None))
    if milestones is not None:
        options["milestones"] = sorted(milestones.elements() if isinstance(milestones, Counter) else milestones)
    parts = {
        f"part {number}": _describe_scheduler(part)
        for number, part in enumerate(vars(scheduler).get("_schedulers", []))
    }
    return {"class": type(scheduler).__name__, **_plain(options, _RUNNING), **parts}


def describe_criterion(criterion: Any) -> dict[str, Any]:
    """Return class or function and options, and those of the losses in it; parameters by shape, as training goes on."""
    if isinstance(criterion, partial):
        given = {**criterion.keywords, **({"args": list(criterion.args)} if criterion.args else {})}
        return {**describe_criterion(criterion.func), **_plain(given, set()), "arguments": sorted(given)}
    options = getattr(criterion, "__dict__", {})
    numbers = {name: value for name, value in options.items() if not getattr(value, "ndim", 0)}
    losses = {name: part for name, part in options.get("_modules", {}).items() if hasattr(part, "reduction")}
    return {
        "class": getattr(criterion, "__name__", type(criterion).__name__),
        # Of a function, the names of what it is given: what is left out would not be compared.
        **({"arguments": []} if hasattr(criterion, "__name__") else {}),
        **_plain(numbers, _RUNNING),
        **_plain(options.get("_buffers", {}), set()),
        **{name: list(value.shape) for name, value in getattr(criterion, "named_parameters", dict)()},
        **{name: describe_criterion(loss) for name, loss in losses.items()},
    }


def describe_loader(loader: Any) -> dict[str, Any]:
    """Return the class and the options of a loader, as plain values."""
    if hasattr(loader, "describe"):
        return {"class": type(loader).__name__, **loader.describe()}
    options = {
        "batch_size": getattr(loader, "batch_size", None),
        "shuffle": is_shuffled(loader),
        "generators": len(own_generators(loader)),
    }
    images, drawn = count_images(loader), count_drawn(loader)
    if images is not None:
        options["images"] = images
    if drawn != images:  # the records of earlier versions have the images alone
        options["drawn"] = drawn
    return {"class": type(loader).__name__, **_plain(options, set())}


def _plain(options: dict[str, Any], leave_out: set[str]) -> dict[str, Any]:
    """Keep the public options that are finite numbers, strings, or lists or arrays of these, as Python's own."""
    kept = {}
    for name, value in options.items():
        if hasattr(value, "tolist") and hasattr(value, "shape") and math.prod(value.shape) <= _LARGEST:
            value = value.item() if math.prod(value.shape) == 1 else value.tolist()
        if isinstance(value, tuple):
            value = list(value)
        if not name.startswith("_") and name not in leave_out and _is_plain(value):
            kept[name] = value
    return kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    # No subclass, such as an enumeration, which is not saved as a plain value.
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
