"""A minute's look at a model and its data for the mistakes that raise no error."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from . import mistakes
from .assignments import Brief, find_brief
from .augmentation import Check, augmentation_checks
from .batches import check_batch, check_labels
from .brief import audit_plan
from .checks import check_criterion, check_data, check_loader, check_model, check_optimizer
from .compiling import unwrap
from .failures import explain_failure, is_misfit
from .forward import loss_of
from .kept import keep_rng
from .loader import Loader
from .parts import copy_model, is_shuffled, keep_loaders
from .rules import FAIL, PASS

IMAGES = 16


@dataclass(frozen=True)
class Preflight:
    """The checks, in order; prints as a table."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            verdict = {True: "pass", False: "FAIL", None: "open"}[check.passed]
            lines.append(f"{verdict}  {check.name:<{width}}  {check.found}")
            if check.passed is False and check.cause:
                lines.append(f"{'':4}  {'':<{width}}  likely cause: {check.cause}")
        return "\n".join(lines)

    __repr__ = __str__


def preflight(
    model: nn.Module,
    data: Any,
    brief: str | Brief | None = None,
    *,
    optimizer: Any = None,
    scheduler: Any = None,
    criterion: Any = None,
) -> Preflight:
    """Check, in under a minute on a CPU, what a training run would not complain about.

    That the images are normalized, every layer is known to the model, the outputs are logits and in evaluation the same
    each time and whatever else is in the batch, the loss starts near ln(classes), a batch of 16 images can be learnt by
    heart (Adam, at most 60 steps or 40 seconds, float32), every parameter moves while it is, training and test set
    share no image, the training images come in random order, and each augmentation changes pixels, differently for each
    image. With a brief those of its rules that need no run are checked as well. All of it happens on a copy of the
    model on the CPU; model, data and random generators are left as they were.

    Args:
        model: the model that is to be trained.
        data: what `load_data` returned, or an object like it with loaders of one's own, whose images are not compared.
        brief: the assignment, by name or as a `Brief`, or None.
        optimizer, scheduler, criterion: what `fit` is to be given; of one that is None nothing is said, and rules about
            it are left open.

    Raises:
        TypeError: the arguments are something else.
        ValueError: `fit` would refuse the optimizer or the criterion, the training loader is empty, its first batch
            is not (float32 images, int64 labels) of the classes, or the brief is unknown.
    """
    check_model(model)
    check_data(data, "train", "test", "classes", more=", or an object like it with train, test and classes")
    check_loader("data.train", data.train)
    if optimizer is not None:
        check_optimizer(optimizer, model)
    check_criterion(criterion)
    brief = None if brief is None else find_brief(brief)
    with keep_rng(), keep_loaders(data.train, data.test):
        name = "the first batch of data.train"
        images, all_labels = check_batch(next(iter(data.train), None), name)
        images, labels = images[:IMAGES].cpu(), all_labels[:IMAGES].cpu()
        trial = copy_model(unwrap(model)).cpu().train()
        try:
            with torch.no_grad():
                outputs = trial(images)
        except Exception as error:
            if not is_misfit(error):
                raise
            cause = explain_failure(trial, tuple(images.shape), error)
            return Preflight([Check("a batch goes through the model", False, type(error).__name__, cause)])
        learner = copy_model(trial)  # after the first batch, which makes the weights of lazy layers
        logits = mistakes.outputs_are_logits(outputs, labels, len(data.classes))
        checks = [mistakes.images_are_scaled(images), mistakes.layers_are_known(trial), logits]
        if logits.passed is not False:
            check_labels(all_labels, len(data.classes), name)
            if criterion is not None:
                loss = copy_model(criterion).cpu() if isinstance(criterion, nn.Module) else criterion
                loss_of(loss, outputs.clone().requires_grad_(), labels, first=True)
            checks.append(mistakes.evaluation_repeats(trial, images))
            if checks[-1].passed:
                checks.append(mistakes.images_do_not_mix(trial, images))
            checks.append(mistakes.starts_near_chance(outputs, labels))
            learnt, *others = mistakes.learns_by_heart(learner, images, labels)
            if any(check.passed is False for check in checks):
                learnt = replace(learnt, cause="what failed above; mend that first")
            checks += [learnt, *others]
        if isinstance(data.train, Loader) and isinstance(data.test, Loader):
            checks.append(mistakes.shares_no_image(data.train, data.test))
            checks += augmentation_checks(data.train)
        else:
            if is_shuffled(data.train) is not None:
                checks.append(mistakes.order_is_random(data.train, all_labels))
            found = "only loaders of load_data can be looked at"
            checks += [Check(name, None, found) for name in (mistakes.NO_IMAGE_SHARED, "augmentation changes pixels")]
        if brief is not None and logits.passed is not False:
            plan = audit_plan(brief, trial, data, optimizer=optimizer, scheduler=scheduler, criterion=criterion)
            for rule in plan.findings:
                passed = {PASS: True, FAIL: False}.get(rule.verdict)
                checks.append(Check(f"rule: {rule.rule}", passed, f"{rule.found} (required: {rule.required})"))
        return Preflight(checks)
