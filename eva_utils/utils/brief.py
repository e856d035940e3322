"""The audit of a run against an assignment's rules."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import depth_rule, norm_rules, rules
from .assignments import Brief, find_brief
from .checks import check_data, check_model
from .compiling import unwrap
from .gradcam import GradCAM
from .history import History, describe_criterion, describe_loader
from .kept import keep_rng
from .notebook import cells_run_here
from .parts import count_drawn, count_images, keep_loaders, layers_of
from .predictions import HITS, MISTAKES
from .rules import Finding, equal


@dataclass(frozen=True)
class Audit:
    """The findings, in order; prints as a table."""

    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether every rule was checked and none is broken."""
        return all(finding.verdict == rules.PASS for finding in self.findings)

    def __str__(self) -> str:
        width = max((len(finding.rule) for finding in self.findings), default=0)
        return "\n".join(
            f"{finding.verdict:<11}  {finding.rule:<{width}}  {finding.found} (required: {finding.required})"
            for finding in self.findings
        )

    __repr__ = __str__


def audit(
    brief: str | Brief,
    history: History,
    model: nn.Module,
    data: Any,
    *,
    shown: Mapping[str, Sequence[Any]] | None = None,
    explained: Mapping[str, Sequence[Any]] | None = None,
    maps: Mapping[str, tuple[int, int]] | None = None,
    notebook: str | Path | None = None,
) -> Audit:
    """Check a run against an assignment's rules, with evidence read from its record, its model and its data.

    A copy of the model runs on a test image, in training and in evaluation mode; the training transforms
    run on 64 images. Model, data and random generators are left as they were. What no evidence was given for
    is "not checked".

    Args:
        brief: one of `BRIEFS` by name, or a `Brief`.
        history: what `fit` returned.
        model: the model that was trained.
        data: what `load_data` returned and the run was trained on.
        shown: the records that are shown, by kind: {"misclassified": predictions.wrong(20),
            "correctly classified": predictions.correct(20)}.
        explained: the records that Grad-CAM explains, or their indices, likewise.
        maps: height and width of each layer's Grad-CAM map, as `GradCAM.sizes` gives them.
        notebook: file of the notebook; None is the notebook this runs in, if it runs in one.

    Raises:
        ValueError: the brief is unknown, the history has no finished epoch, or the notebook cannot be read.
        TypeError: the brief is neither a name nor a `Brief`, or history, model or data is something else.
    """
    if not isinstance(history, History):
        raise TypeError(f"history is what fit returned, not {type(history).__name__}")
    check_model(model)
    check_data(data, "test", "classes")
    with keep_rng(), keep_loaders(getattr(data, "train", None), data.test):
        return Audit(_findings(find_brief(brief), history, model, data, shown, explained, maps, notebook))


def _findings(
    brief: Brief, history: History, model: nn.Module, data: Any, shown: Any, explained: Any, maps: Any, notebook: Any
) -> list[Finding]:
    settings, rows = history.settings, history.rows
    if not rows:
        raise ValueError("no epoch has finished, so there is nothing to audit")
    model = unwrap(model)
    trained, criterion = settings["train_loader"], settings["criterion"]
    findings = _of_data(brief, data, trained)
    group = rules.options(settings["optimizer"]["group 0"], ("lr", "momentum", "weight_decay", "nesterov"))
    if brief.epochs is not None:
        findings.append(rules.epochs(brief.epochs, settings, rows))
    findings += [
        *equal("batch size", brief.batch_size, trained.get("batch_size")),
        *equal("optimizer", brief.optimizer, settings["optimizer"]["class"], group),
        *equal("loss", brief.criterion, _loss(criterion["class"]), rules.loss_options(criterion)),
    ]
    if brief.accuracy is not None:
        findings.append(rules.accuracy(brief.accuracy, history.best, are_recorded(data.test, settings["test_loader"])))
    if brief.scheduler is not None:
        findings.append(rules.learning_rate(brief.scheduler, settings, rows))
    if brief.peak_epoch is not None:
        findings.append(rules.one_cycle(brief.peak_epoch, settings, rows))
    findings += equal("network", brief.model, settings["model"])
    findings += _of_network(brief, model, data, trained)
    if brief.correct is not None:
        findings.append(rules.gallery(HITS, brief.correct, shown, explained))
    if brief.misclassified is not None:
        findings.append(rules.gallery(MISTAKES, brief.misclassified, shown, explained))
    if brief.layers is not None:
        found = None if maps is None else ", ".join(maps) or "none"
        findings += equal("Grad-CAM layers", ", ".join(brief.layers), found)
    if brief.least_map is not None:
        findings.append(rules.map_sizes(brief.least_map, maps))
    if brief.plain_notebook:
        findings.append(rules.plain_notebook(notebook))
    return findings


def audit_plan(
    brief: str | Brief,
    model: nn.Module,
    data: Any,
    *,
    optimizer: Any = None,
    scheduler: Any = None,
    criterion: Any = None,
) -> Audit:
    """Check before a run those of an assignment's rules that need no run, as `audit` does afterwards.

    Args:
        brief, model, data: see `audit`; here the model is yet to be trained.
        optimizer, scheduler, criterion: what `fit` is to be given; a rule about one that is None is "not checked".
    """
    brief = find_brief(brief)
    with keep_rng(), keep_loaders(data.train, data.test):
        model, trained = unwrap(model), describe_loader(data.train)
        loss = None if criterion is None else _loss(describe_criterion(criterion)["class"])
        findings = [
            *_of_data(brief, data, trained),
            *equal("batch size", brief.batch_size, trained.get("batch_size")),
            *_planned("optimizer", "optimizer", brief.optimizer, _class(optimizer)),
            *_planned("loss", "criterion", brief.criterion, loss),
            *_planned("learning rate", "scheduler", brief.scheduler, _class(scheduler)),
            *equal("network", brief.model, type(model).__name__),
            *_of_network(brief, model, data, trained),
        ]
        if brief.layers is not None:
            findings.append(rules.layers(brief.layers, model))
        if brief.least_map is not None:
            image = next(iter(data.test))[0][:1].to(next(model.parameters()).device)
            named = layers_of(model, brief.layers or ()) or None
            maps = None
            with suppress(ValueError):  # of a network that has none
                maps = GradCAM(model, named).sizes(image)
            findings.append(rules.map_sizes(brief.least_map, maps))
        if brief.plain_notebook and cells_run_here() is not None:
            findings.append(rules.plain_notebook(None))
        return Audit(findings)


def _of_data(brief: Brief, data: Any, trained: dict) -> list[Finding]:
    counts: tuple = (trained.get("drawn", trained.get("images")), count_drawn(data.test))
    if None not in counts and getattr(data, "test_share", None) is not None:
        counts = (*counts, "split anew")
    return [
        *equal("classes", brief.classes, tuple(data.classes)),
        *equal("training and test images", brief.images, None if None in counts else counts),
    ]


def _of_network(brief: Brief, model: nn.Module, data: Any, trained: dict) -> list[Finding]:
    findings = []
    if brief.depth is not None or brief.norm is not None:
        images = next(iter(data.test))[0]
    if brief.depth is not None:
        findings.append(depth_rule.depth(brief.depth, model, images))
    if brief.norm is not None:
        findings.append(norm_rules.normalization(brief.norm, model, images))
    if brief.transforms is not None:
        findings.append(rules.transforms(brief.transforms, trained.get("transform"), data.train))
    return findings


def _planned(rule: str, argument: str, required: str | None, found: str | None) -> list[Finding]:
    """Compare the class of a part of the run to come, if there is a rule about it and the part was given."""
    if required is not None and found is None:
        return [Finding(rule, required, f"give {argument}= as well", rules.UNCHECKED)]
    return equal(rule, required, found)


def _class(part: Any) -> str | None:
    return None if part is None else type(part).__name__


def _loss(name: str) -> str:
    return {"cross_entropy": "CrossEntropyLoss"}.get(name, name)


def are_recorded(loader: Any, recorded: dict) -> bool:
    """Whether a loader's images may be those of a loader on record, by fingerprint, if it has one, and number."""
    same = recorded.get("fingerprint") == getattr(loader, "fingerprint", None)
    counts = {"images": count_images(loader), "drawn": count_drawn(loader)}
    return same and all(recorded.get(name) in (None, count) for name, count in counts.items())
