"""A minute's look at a model and its data for the mistakes that raise no error."""

import copy
import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .augmentation import Check, augmentation_checks
from .batches import are_probabilities, check_batch, check_labels
from .checks import check_loader, check_model
from .failures import explain_failure, is_misfit
from .images import ImageFiles
from .loader import Loader
from .parts import keep_loaders, trainable_parameters
from .runtime import keep_rng

OVERFIT_IMAGES = 16
LEAST_STEPS, OVERFIT_STEPS = 5, 60
MOST_SECONDS = 40
NO_IMAGE_SHARED = "train and test share no image"


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
            if check.passed is False:
                lines.append(f"{'':4}  {'':<{width}}  likely cause: {check.cause}")
        return "\n".join(lines)

    __repr__ = __str__


def preflight(model: nn.Module, data: Any) -> Preflight:
    """Check, in under a minute on a CPU, what a training run would not complain about.

    That the outputs are logits, the loss starts near ln(classes), a batch of 16 images can be learnt by
    heart (Adam, at most 60 steps or 40 seconds, float32), every parameter moves while it is, training and test set
    share no image, and each augmentation changes pixels, differently for each image. All of it happens
    on a copy of the model on the CPU; model, data and random generators are left as they were.

    Args:
        model: the model that is to be trained.
        data: what `load_data` returned, or an object like it with loaders of one's own, whose images are not compared.

    Raises:
        TypeError: the arguments are something else.
        ValueError: the training loader is empty, or its first batch is not (float32 images, int64 labels) of the
            classes.
    """
    check_model(model)
    missing = [name for name in ("train", "test", "classes") if not hasattr(data, name)]
    if missing:
        raise TypeError(
            "data is what load_data returned, or an object like it with train, test and classes; "
            f"{type(data).__name__} has no {missing[0]}"
        )
    check_loader("data.train", data.train)
    with keep_rng(), keep_loaders(data.train, data.test):
        place = "the first batch of data.train"
        images, all_labels = check_batch(next(iter(data.train), None), place)
        images, labels = images[:OVERFIT_IMAGES].cpu(), all_labels[:OVERFIT_IMAGES].cpu()
        trial = copy.deepcopy(model).cpu().train()
        try:
            with torch.no_grad():
                outputs = trial(images)
        except RuntimeError as error:
            if not is_misfit(error):
                raise
            cause = explain_failure(trial, tuple(images.shape), error)
            return Preflight([Check("a batch goes through the model", False, type(error).__name__, cause)])
        checks = [_outputs_are_logits(outputs, labels, len(data.classes))]
        if checks[0].passed:
            check_labels(all_labels, len(data.classes), place)
            checks.append(_starts_near_chance(outputs, labels))
            checks += _learns_by_heart(trial, images, labels)
        if hasattr(data.train, "images") and hasattr(data.test, "images"):
            checks.append(_shares_no_image(data.train, data.test))
            checks += augmentation_checks(data.train)
        else:
            found = "only loaders of load_data can be looked at"
            checks += [Check(name, None, found) for name in (NO_IMAGE_SHARED, "augmentation changes pixels")]
        return Preflight(checks)


def _outputs_are_logits(outputs: Any, labels: Tensor, classes: int) -> Check:
    name = "outputs are logits"
    if not isinstance(outputs, Tensor) or outputs.shape != (len(labels), classes):
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        cause = f"the last layer must have {classes} outputs, one a class"
        return Check(name, False, f"{found} for {len(labels)} images of {classes} classes", cause)
    if are_probabilities(outputs):
        cause = "the model ends in a softmax, and cross entropy applies one itself: return the logits"
        return Check(name, False, "every row adds up to 1", cause)
    return Check(name, True, f"{tuple(outputs.shape)}, from {outputs.min():.2f} to {outputs.max():.2f}")


def _starts_near_chance(outputs: Tensor, labels: Tensor) -> Check:
    loss, chance = nn.functional.cross_entropy(outputs, labels).item(), math.log(outputs.shape[1])
    found = f"loss {loss:.2f}, ln({outputs.shape[1]}) = {chance:.2f}"
    cause = "the first weights are too large, the images are not normalized, or the model was trained before"
    return Check("loss starts near chance", abs(loss - chance) < max(0.6 * chance, 1.5), found, cause)


def _learns_by_heart(trial: nn.Module, images: Tensor, labels: Tensor) -> list[Check]:
    """Train the copy on one batch; dropout is off, since it would only slow this down."""
    for module in trial.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    named = dict(trial.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    trainable = trainable_parameters(trial)
    if not trainable:
        cause = "requires_grad is off everywhere: set requires_grad_(True) on the layers to train"
        return [Check("one batch can be learnt", False, "no trainable parameter", cause)]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    step, share, start = 0, 0.0, time.monotonic()
    for step in range(1, OVERFIT_STEPS + 1):
        optimizer.zero_grad()
        outputs = trial(images)
        if not outputs.requires_grad:
            break
        nn.functional.cross_entropy(outputs, labels).backward()
        optimizer.step()
        share = (outputs.argmax(1) == labels).float().mean().item()
        if step >= LEAST_STEPS and (share == 1 or time.monotonic() - start > MOST_SECONDS):
            break
    cut_short = share < 1 and step < OVERFIT_STEPS and outputs.requires_grad
    slow = 0.75 <= share < 1 and outputs.requires_grad  # as a small network that is in order may be
    still = [name for name, parameter in named.items() if torch.equal(parameter, before[name])]
    frozen = [name for name in still if not named[name].requires_grad]
    learnt = Check(
        "one batch can be learnt",
        None if cut_short or slow else share == 1,
        f"{100 * share:.0f}% of {len(labels)} images after {step} steps"
        + (f"; in {MOST_SECONDS} seconds there was no time for {OVERFIT_STEPS}" if cut_short else "")
        + ("; it learns, slowly" if slow and not cut_short else ""),
        "the labels do not belong to the images, a layer is cut off or frozen, or there is no nonlinearity",
    )
    reached = Check(
        "gradients reach every parameter",
        None if still and still == frozen else not still,
        f"{len(named) - len(still)} of {len(named)} parameters moved"
        + (f"; not {', '.join(still[:3])}" if still else "")
        + ("; requires_grad is off: fine if you meant it" if still and still == frozen else ""),
        "forward() does not use them, or detach(), no_grad() or .data cuts the graph",
    )
    return [learnt, reached]


def _shares_no_image(train: Loader, test: Loader) -> Check:
    seen = set(_digests(train.images))
    shared = sum(digest in seen for digest in _digests(test.images))
    found = f"{shared} of {len(test.images)} test images are training images too"
    return Check(
        NO_IMAGE_SHARED,
        not shared,
        found,
        "the test folder was copied from train/, or split after copying",
    )


def _digests(images: Tensor | ImageFiles):
    if isinstance(images, Tensor):
        yield from (hashlib.md5(image.data, usedforsecurity=False).digest() for image in images.cpu().numpy())
    else:
        yield from (hashlib.md5(path.read_bytes(), usedforsecurity=False).digest() for path in images.paths)
