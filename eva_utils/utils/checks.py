"""What is refused before any work: numbers out of range, arguments and batches that do not fit each other."""

import math
import numbers
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, OneCycleLR
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def check_whole(name: str, value: object, least: int, most: int = 2**31 - 1) -> None:
    """Raise ValueError unless the value is a whole number from `least` to `most`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{name} is a whole number from {least} up, not {value!r}")
    if int(value) > most:
        raise ValueError(f"{name} is a whole number of at most {most}, not {value!r}")


def check_real(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise ValueError unless the value is a number from `low` (or, with `open_low`, above it) to below `high`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if not (low <= number < high) or (open_low and number == low):
        bounds = f"{'above' if open_low else 'from'} {low:g}" + (f" and below {high:g}" if high < math.inf else " up")
        raise ValueError(f"{name} is a number {bounds.replace('above 0 up', 'above 0')}, not {value!r}")


def check_seed(seed: object) -> None:
    """Raise ValueError unless the seed is one that python, numpy and torch all take."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"a seed is a whole number from 0 to 2**32 - 1, not {seed!r}")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a step changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def check_loader(name: str, loader: Any) -> None:
    """Raise unless a loader has a length and something to yield."""
    try:
        batches = len(loader)
    except TypeError:
        advice = "pass a DataLoader or one of load_data's loaders"
        if loader is None:
            advice = "if it was data.validation, hold images out with load_data(validation=5000)"
        elif hasattr(loader, "train") and hasattr(loader, "test"):
            advice = "pass its .train or .test"
        elif isinstance(loader, DataLoader):
            advice = "its dataset has none; give the dataset a __len__"
        raise TypeError(f"{name} ({type(loader).__name__}) has no length; {advice}") from None
    if batches == 0:
        raise ValueError(f"{name} is empty; it must yield at least one batch of (images, labels)")


def is_shuffled(loader: Any) -> bool | None:
    """Whether a loader shuffles, by its `shuffle` if it is one of `load_data`, else by its sampler; None if unknown."""
    if isinstance(getattr(loader, "shuffle", None), bool):
        return loader.shuffle
    # Given a batch_sampler, a DataLoader's own sampler is a stand-in and says nothing of the order.
    batches = getattr(loader, "batch_sampler", None)
    sampler: Sampler | None = getattr(loader if batches is None else batches, "sampler", None)
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        return True
    return False if isinstance(sampler, SequentialSampler) else None


def warn_of_swapped_loaders(train_loader: Any, test_loader: Any) -> None:
    """Warn if the training images come in order and the test images shuffled."""
    if is_shuffled(train_loader) is False and is_shuffled(test_loader):
        warnings.warn(
            "the training loader keeps its order and the test loader shuffles, so they seem to be swapped; "
            "fit takes the training loader first, fit(model, data.train, data.test)",
            stacklevel=3,
        )


def check_fit(
    model: nn.Module,
    train_loader: Any,
    test_loader: Any,
    epochs: int,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
    criterion: Any,
) -> None:
    """Refuse what cannot train, before any work."""
    check_whole("epochs", epochs, 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")
    if any(parameter.is_inference() or parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model was made inside torch.inference_mode() or on the meta device, so it cannot be trained; "
            "build it outside"
        )
    if not trainable_parameters(model):
        raise ValueError("the model has no trainable parameter; set requires_grad_(True) on those to train")
    check_loader("train_loader", train_loader)
    check_loader("test_loader", test_loader)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a torch optimizer such as SGD(model.parameters(), lr=0.1), not {optimizer!r}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS runs the model several times a step, which the loop does not; use SGD or Adam")
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler is one of torch.optim.lr_scheduler, built with the optimizer, not {scheduler!r}")
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("the optimizer holds no parameter of this model; build it from model.parameters()")
        if not any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("every parameter of the optimizer is frozen; set requires_grad_(True) on those to train")
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not all(math.isfinite(rate) for rate in rates):
            raise ValueError(f"the optimizer's learning rates are {rates}; give finite ones")
        if scheduler is None and min(rates) < 0:
            raise ValueError(
                f"the optimizer's learning rate is {min(rates):g}, as a one-cycle schedule leaves it at its end; "
                "build optimizer and scheduler anew before each run"
            )
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer; pass the optimizer it was built with")
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < epochs * len(train_loader):
        raise ValueError(
            f"OneCycleLR was built for {scheduler.total_steps} steps and the run takes {epochs} epochs of "
            f"{len(train_loader)} batches; build it with epochs={epochs}, steps_per_epoch={len(train_loader)}"
        )
    for inner in _inner_schedulers(scheduler):
        if isinstance(inner, OneCycleLR) and inner.total_steps > epochs:
            raise ValueError(
                f"a OneCycleLR of {inner.total_steps} steps inside {type(scheduler).__name__} would be stepped once an "
                f"epoch, {epochs} times; pass it alone, it is then stepped after every batch"
            )
    if isinstance(scheduler, CosineAnnealingLR) and scheduler.T_max == epochs * len(train_loader) > epochs:
        raise ValueError(
            f"CosineAnnealingLR(T_max={scheduler.T_max}) counts the run's batches, as it seems, and steps once an "
            f"epoch; build it with T_max={epochs}"
        )
    if criterion is not None and (isinstance(criterion, type) or not callable(criterion)):
        raise TypeError(f"criterion is a loss such as nn.CrossEntropyLoss(), with its parentheses, not {criterion!r}")
    reduction = getattr(criterion, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(f"the criterion must average over the batch, not reduction={reduction!r}")


def _inner_schedulers(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield the schedulers that SequentialLR and ChainedScheduler hold."""
    for inner in getattr(scheduler, "_schedulers", []):
        yield inner
        yield from _inner_schedulers(inner)


def check_unscheduled(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a one-cycle schedule stands at its first rate, and the run is to have another."""
    if any(
        "max_lr" in group and math.isclose(float(group["lr"]), group["initial_lr"]) for group in optimizer.param_groups
    ):
        raise ValueError(
            "a OneCycleLR was built on this optimizer and not passed, so the run would begin at its lowest rate; pass "
            "scheduler= as well, or build the optimizer anew"
        )


def check_steps_left(scheduler: LRScheduler, steps: int) -> None:
    """Raise ValueError unless a one-cycle schedule has as many steps left as the run takes."""
    if not isinstance(scheduler, OneCycleLR):
        return
    left = scheduler.total_steps - scheduler.last_epoch
    if left < steps:
        raise ValueError(
            f"OneCycleLR has {left} of its {scheduler.total_steps} steps left and the run takes {steps}; build "
            "optimizer and scheduler anew before each run"
        )
    if left > steps:
        raise ValueError(
            f"OneCycleLR has {left} steps left and the run takes {steps}, so the rate would not come down; build it "
            f"with total_steps={steps}, epochs times len(train_loader)"
        )


def check_warmup(warmup: int, epochs: int, scheduler: LRScheduler | None) -> None:
    """Raise ValueError unless a warmup leaves epochs to train at the full rate, and the scheduler room for it."""
    check_whole("warmup", warmup, 0)
    if warmup >= epochs:
        raise ValueError(
            f"warmup={warmup} leaves none of epochs={epochs} at the full rate; make it shorter or train longer"
        )
    if warmup and isinstance(scheduler, OneCycleLR | CyclicLR):
        raise ValueError(f"{type(scheduler).__name__} sets the rate of every batch; leave warmup out")


def check_averaging(ema: float | None, clip: float | None) -> None:
    """Raise ValueError unless the decay of averaged weights and the gradient's largest norm are in range, or None."""
    if ema is not None:
        check_real("ema", ema, 0, 1)
    if clip is not None:
        check_real("clip", clip, 0, open_low=True)


def check_batch(batch: Any, place: str, unlabelled: bool = False) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of a batch, or raise if it is not (float32 images, int64 labels).

    Args:
        batch: what a loader yielded.
        place: names the batch in the message, as "batch 3".
        unlabelled: whether it may have an image and no label, as one process's part of a small batch has.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        kind = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise ValueError(f"{place} is a {kind}; a loader must yield pairs of tensors (images, labels)")
    images, labels = batch
    if images.dtype != torch.float32 or images.ndim < 2:
        raise ValueError(
            f"the images of {place} are {_kind(images)}; give float32 (N, C, H, W), as normalize() makes of uint8"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        one_hot = "; turn one-hot rows into numbers with labels.argmax(1)" if labels.ndim == 2 else ""
        raise ValueError(f"the labels of {place} are {_kind(labels)}; give class numbers, int64 (N,){one_hot}")
    fits = len(images) == len(labels) if len(labels) else unlabelled
    if not fits:
        raise ValueError(f"{place} has {len(images)} images and {len(labels)} labels; give one label an image")
    return images, labels


def is_misfit(error: RuntimeError) -> bool:
    """Whether a model's error may be its images' fault; lack of memory and a killed worker are not."""
    return "memory" not in str(error) and "worker" not in str(error)


def explain_failure(model: nn.Module, shape: tuple[int, ...], error: Exception) -> str:
    """Say why a model may have failed on its first batch, whose images have this shape."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and len(shape) != 4:
        return f"the model is a convnet and the images are {shape}; give it batches (N, C, H, W)"
    if first is not None and first.in_channels == shape[3] != shape[1]:
        return f"the images are {shape}, channels last; give (N, C, H, W), as images.permute(0, 3, 1, 2) makes of them"
    if first is not None and first.in_channels != shape[1]:
        return (
            f"the model takes images of {first.in_channels} channels and these are {shape}; "
            f"repeat or drop channels, or build its first layer for {shape[1]}"
        )
    return f"the model failed on its first batch, images {shape}: {str(error).splitlines()[0]}"


@contextmanager
def failure_explained(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn the error of a model that runs on its first images into one that says what does not fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_misfit(error):
            raise
        raise ValueError(explain_failure(model, tuple(images.shape), error)) from error


def check_logits(logits: Any, images: Tensor) -> None:
    """Raise unless a model's output is floating point (N, C)."""
    found = _kind(logits) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        advice = ""
        if hasattr(logits, "logits"):  # of torchvision's GoogLeNet and Inception; of other packages' models
            auxiliary = any(name.startswith("aux_logits") for name in getattr(logits, "_fields", ()))
            advice = "; build it with aux_logits=False" if auxiliary else ", as the .logits of this output"
        raise ValueError(
            f"the model returned {found} for {len(images)} images; it must return logits (N, classes){advice}"
        )


def check_loss(loss: Any, criterion: Any, logits: Tensor) -> None:
    """Raise unless a criterion returned one number, with a gradient where one is wanted, of inputs it is made for."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = _kind(loss) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"the criterion returned {found}; it must return the mean loss of the batch, a tensor of no dimensions, "
            "so leave out .item() and end in .mean()"
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "the loss has no gradient; compute it from the logits with torch operations, without detach(), argmax() "
            "or numpy"
        )
    totals = logits.detach().float().logsumexp(dim=1)
    if isinstance(criterion, nn.NLLLoss) and (totals[totals.isfinite()].abs() > 1e-2).any():
        raise ValueError(
            "NLLLoss takes log-probabilities and the model returns logits; use nn.CrossEntropyLoss(), or end the model "
            "in log_softmax"
        )


def check_labels(labels: Tensor, classes: int, place: str) -> None:
    """Raise unless every label is from 0 to classes - 1; this waits for the labels' device."""
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{place} has labels from {low} to {high} and the model {classes} classes; "
            f"labels are from 0 to {classes - 1}: renumber them, or build the model with more classes"
        )


def check_classes(outputs: int, classes: Sized) -> None:
    """Raise ValueError unless a model has as many outputs as the data classes."""
    if outputs != len(classes):
        raise ValueError(
            f"the model has {outputs} outputs and the data {len(classes)} classes; build and train it with "
            f"num_classes={len(classes)}"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (N, C) look as if a softmax had made them: none negative, each row adding up to 1."""
    sums = outputs.detach().float().sum(dim=1)
    return (
        outputs.shape[1] > 1 and bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    )


def warn_of_softmax(outputs: Tensor) -> None:
    """Warn if a model ends in a softmax, since cross entropy applies one itself."""
    if are_probabilities(outputs):
        warnings.warn(
            "the model ends in a softmax and cross entropy applies one itself, so the loss cannot come near 0; "
            "return the logits instead",
            stacklevel=1,  # one place, so that Python shows it once
        )


def warn_of_unused_outputs(outputs: int, *loaders: Any) -> None:
    """Warn if a model has more outputs than the labels of `load_data`'s loaders have classes."""
    labels = [getattr(loader, "labels", None) for loader in loaders]
    known = [int(part.max()) + 1 for part in labels if isinstance(part, Tensor)]
    classes = max(known, default=outputs)
    if len(known) == len(loaders) and outputs > classes:
        warnings.warn(
            f"the model has {outputs} outputs and the labels {classes} classes; the figures and the report want as "
            f"many of one as of the other, so build it with num_classes={classes}",
            stacklevel=3,
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
