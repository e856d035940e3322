"""The mistakes that raise no error: one function for each, and the line it has in preflight's table."""

import hashlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .augmentation import Check
from .batches import are_probabilities
from .failures import is_misfit
from .images import ImageFiles
from .loader import Loader
from .names import first_line, plural
from .parts import is_shuffled, trainable_parameters

LEAST_STEPS, OVERFIT_STEPS = 5, 60
MOST_SECONDS = 40
LARGEST = 30  # of a pixel, normalized: (1 - mean) / std stays below for any std above 1/30
_FAILS_BACKWARD = {
    "inplace operation": "forward() changes in place what its gradients need, as h += 1 after a sigmoid: h = h + 1",
    "second time": "forward() keeps what it computed of the batch before, as a hidden state: detach() that",
}
NO_IMAGE_SHARED = "train and test share no image"


def layers_are_known(model: nn.Module) -> Check:
    """Look for layers that a model holds in a list, tuple or dict of its own, and therefore does not train."""
    known, hidden, where = set(model.parameters()), set(), []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            layers = (part for part in held if isinstance(part, nn.Module))
            strays = {part for part in layers if not known.issuperset(part.parameters())}
            if strays:
                hidden |= strays
                where.append(".".join(filter(None, (name, attribute))))
    found = (
        f"{plural(len(hidden), 'layer')} in {', '.join(where)}" if hidden else f"{len(list(model.modules()))} modules"
    )
    cause = "a plain list or dict hides layers, which are neither trained nor saved: use nn.ModuleList or nn.ModuleDict"
    return Check("every layer is known to the model", not hidden, found, cause)


def images_are_scaled(images: Tensor) -> Check:
    """See whether the images' numbers are small, as normalized pixels are, and not from 0 to 255, or from 0 to 1."""
    low, high = (value.item() for value in images.aminmax())
    found = f"from {low:.2f} to {high:.2f}"
    if low >= 0 and high <= 1:
        return Check(
            "images are normalized", None, f"{found}: scaled to 0 to 1, but apparently not normalized by mean and std"
        )
    cause = "pixels from 0 to 255: scale them to 0 to 1, as v2.ToDtype(torch.float32, scale=True) does, and normalize"
    return Check("images are normalized", max(-low, high) <= LARGEST, found, cause)


def outputs_are_logits(outputs: Any, labels: Tensor, classes: int) -> Check:
    """See whether there is a number for each image and class, and whether they may be negative and add up to more."""
    name = "outputs are logits"
    if not isinstance(outputs, Tensor) or outputs.shape != (len(labels), classes):
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        cause = f"the last layer must have {classes} outputs, one a class"
        if not isinstance(outputs, Tensor):
            cause = "forward() must return one tensor" + ("; its return is missing" if outputs is None else "")
        return Check(name, False, f"{found} for {len(labels)} images of {classes} classes", cause)
    if are_probabilities(outputs):
        cause = "the model ends in a softmax, and cross entropy applies one itself: return the logits"
        return Check(name, False, "every row adds up to 1", cause)
    zeros = (outputs == 0).float().mean().item()
    if outputs.min() == 0 and 0.1 < zeros < 1:  # all of them are 0 where the last layer begins with weights of 0
        found = f"{100 * zeros:.0f}% of them are 0 and none is below: the model seems to end in a ReLU"
        return Check(name, None, found)
    return Check(name, True, f"{tuple(outputs.shape)}, from {outputs.min():.2f} to {outputs.max():.2f}")


def evaluation_repeats(model: nn.Module, images: Tensor) -> Check:
    """Run a model twice in evaluation mode, in which nothing may be drawn."""
    model.eval()
    try:
        with torch.no_grad():
            first, second = model(images), model(images)
        differ = (~first.isclose(second, rtol=0, atol=0, equal_nan=True)).any(1).float().mean().item()
    except Exception as error:
        found = f"there the model fails: {type(error).__name__}: {first_line(error)}"
        return Check("evaluation is repeatable", False, found, "what forward() does if self.training is False")
    cause = "dropout goes on in evaluation: nn.Dropout stops there, F.dropout(x, training=self.training) too"
    found = f"{100 * differ:.0f}% of {len(images)} images have other logits the second time"
    return Check("evaluation is repeatable", not differ, found, cause)


def images_do_not_mix(model: nn.Module, images: Tensor) -> Check:
    """Run a model on a batch and on its halves in evaluation mode, in which no image's logits depend on another."""
    name = "each image is answered by itself"
    cause = "forward() mixes the images of a batch: look at what reshape(), view(), t() and dim=0 do to its first axis"
    model.eval()
    try:
        with torch.no_grad():
            first, second = model(images), torch.cat([model(half) for half in images.tensor_split(2) if len(half)])
        size = first.abs().max().clamp(min=1e-3)
        differ = ((first - second).abs().amax(dim=1) > 1e-2 * size).float().mean().item()
    except Exception as error:
        return Check(name, False, f"with half the batch the model fails: {first_line(error)}", cause)
    found = f"{100 * differ:.0f}% of {len(images)} images have other logits in half the batch"
    return Check(name, not differ, found, cause)


def starts_near_chance(outputs: Tensor, labels: Tensor) -> Check:
    """Compare the first loss with that of a guess."""
    loss, chance = nn.functional.cross_entropy(outputs, labels).item(), math.log(outputs.shape[1])
    found = f"loss {loss:.2f}, ln({outputs.shape[1]}) = {chance:.2f}"
    cause = "the first weights are too large, the images are not normalized, or the model was trained before"
    return Check("loss starts near chance", abs(loss - chance) < max(0.6 * chance, 1.5), found, cause)


def learns_by_heart(trial: nn.Module, images: Tensor, labels: Tensor) -> list[Check]:
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
        try:
            outputs = trial(images)
            if not outputs.requires_grad:
                break
            nn.functional.cross_entropy(outputs, labels).backward()
        except Exception as error:
            if not is_misfit(error):
                raise
            found = f"training fails in step {step}: {type(error).__name__}: {first_line(error)}"
            cause = next((cause for said, cause in _FAILS_BACKWARD.items() if said in str(error)), "")
            return [Check("one batch can be learnt", False, found, cause)]
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
        "the labels do not belong to the images, a layer is cut off or frozen, there is no nonlinearity, or it learns "
        "slowly, as sigmoids do and ReLU does not",
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


def order_is_random(train: Any, labels: Tensor) -> Check:
    """See whether a DataLoader shuffles; one that keeps an order which begins with class after class fails."""
    shuffles, in_order = is_shuffled(train), len(labels) > 1 and bool((labels.diff() >= 0).all())
    found = "the loader shuffles" if shuffles else "the loader keeps its order"
    if not shuffles and in_order:
        found += ", and its first batch is one class after another"
    cause = "a network forgets the classes it saw first: give the DataLoader shuffle=True"
    return Check("training images come in random order", shuffles or (False if in_order else None), found, cause)


def shares_no_image(train: Loader, test: Loader) -> Check:
    """Compare the images of both loaders of `load_data`."""
    seen = set(_digests(train.images))
    shared = sum(digest in seen for digest in _digests(test.images))
    found = f"{shared} of {len(test.images)} test images are training images too"
    return Check(
        NO_IMAGE_SHARED,
        not shared,
        found,
        "the test folder was copied from train/, or split after copying",
    )


def _digests(images: Tensor | ImageFiles) -> Iterator[bytes]:
    if isinstance(images, Tensor):
        yield from (hashlib.md5(image.data, usedforsecurity=False).digest() for image in images.cpu().numpy())
    else:
        yield from (hashlib.md5(path.read_bytes(), usedforsecurity=False).digest() for path in images.paths)
