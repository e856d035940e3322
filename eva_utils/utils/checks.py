"""What is refused before any work: numbers out of range, and arguments that do not fit each other."""

import math
import numbers
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
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
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"a seed is a whole number from 0 to 2**32 - 1, not {seed!r}")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a step changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def loss_parameters(criterion: Any) -> list[nn.Parameter]:
    """Return the parameters that a loss has of its own to train, as a temperature; most have none."""
    return trainable_parameters(criterion) if isinstance(criterion, nn.Module) else []


def option_of(criterion: Any, name: str, default: Any = None) -> Any:
    """Return an option of a loss, which may be a class's or one that `functools.partial` gives a function."""
    if isinstance(criterion, partial):
        return criterion.keywords.get(name, default)
    return getattr(criterion, name, default)


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


def warn_of_loaders(train_loader: Any, test_loader: Any) -> None:
    """Warn if the training images come in order and the test images shuffled, or if they are the same images."""
    if is_shuffled(train_loader) is False and is_shuffled(test_loader):
        warnings.warn(
            "the training loader keeps its order and the test loader shuffles, so they seem to be swapped; "
            "fit takes the training loader first, fit(model, data.train, data.test)",
            stacklevel=3,
        )
    images = getattr(train_loader, "fingerprint", None)
    if train_loader is test_loader or (images and images == getattr(test_loader, "fingerprint", None)):
        warnings.warn(
            "the model is tested on the images it trains on, so its accuracy says nothing of new ones; pass data.test, "
            "or data.validation, as the second loader",
            stacklevel=3,
        )


def warn_of_trained(trained: bool) -> None:
    """Warn if a run begins with the weights of an earlier one."""
    if trained:
        warnings.warn(
            "the model has the weights of an earlier run, and this one trains on from there; build a new model for a "
            "run from scratch",
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
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError(
            "the model has lazy layers that have seen no image, so their weights are yet to be made; run a batch "
            "through it first, as model(torch.zeros(2, 3, 32, 32))"
        )
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
        _check_optimizer(optimizer, model, scheduler)
    if scheduler is not None:
        _check_scheduler(scheduler, optimizer, epochs, len(train_loader))
    if criterion is not None and (isinstance(criterion, type) or not callable(criterion)):
        raise TypeError(f"criterion is a loss such as nn.CrossEntropyLoss(), with its parentheses, not {criterion!r}")
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]] if optimizer else []
    if any(id(parameter) not in held for parameter in loss_parameters(criterion)):
        warnings.warn(
            "the loss has parameters that are not in the optimizer and stay as they are; build the optimizer from "
            "[*model.parameters(), *criterion.parameters()]",
            stacklevel=3,
        )
    reduction = option_of(criterion, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(f"the criterion must average over the batch, not reduction={reduction!r}")


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, scheduler: LRScheduler | None) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = dict(model.named_parameters())
    if not any(id(parameter) in held for parameter in own.values()):
        raise ValueError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if not any(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("every parameter of the optimizer is frozen; set requires_grad_(True) on those to train")
    left = [name for name, parameter in own.items() if parameter.requires_grad and id(parameter) not in held]
    if left:
        warnings.warn(
            f"{len(left)} of the model's {len(own)} parameters are not in the optimizer, as {left[0]!r}, and stay as "
            "they are; if that is meant, set requires_grad_(False) on them, else build the optimizer after the last "
            "change of the model",
            stacklevel=4,
        )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(math.isfinite(rate) for rate in rates):
        raise ValueError(f"the optimizer's learning rates are {rates}; give finite ones")
    if scheduler is None and min(rates) < 0:
        raise ValueError(
            f"the optimizer's learning rate is {min(rates):g}, as a one-cycle schedule leaves it at its end; "
            "build optimizer and scheduler anew before each run"
        )


def _check_scheduler(
    scheduler: LRScheduler, optimizer: torch.optim.Optimizer | None, epochs: int, batches: int
) -> None:
    if scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer; pass the optimizer it was built with")
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < epochs * batches:
        raise ValueError(
            f"OneCycleLR was built for {scheduler.total_steps} steps and the run takes {epochs} epochs of "
            f"{batches} batches; build it with epochs={epochs}, steps_per_epoch={batches}"
        )
    for inner in _inner_schedulers(scheduler):
        if isinstance(inner, OneCycleLR) and inner.total_steps > epochs:
            raise ValueError(
                f"a OneCycleLR of {inner.total_steps} steps inside {type(scheduler).__name__} would be stepped once an "
                f"epoch, {epochs} times; pass it alone, it is then stepped after every batch"
            )


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


def warn_of_cosine(scheduler: LRScheduler, epochs: int, warmup: int, batches: int) -> None:
    """Warn if a cosine ends long before or after the run, as one does that counts batches."""
    if not isinstance(scheduler, CosineAnnealingLR):
        return
    length, steps = scheduler.T_max, epochs - warmup
    if length < steps - 1:
        course = f"rises again after {length} of the {steps} epochs"
    elif length >= 10 * epochs or length == epochs * batches > epochs:
        course = "hardly falls"
    else:
        return
    warnings.warn(
        f"CosineAnnealingLR(T_max={length}) steps once an epoch, so the rate {course}; for a run of this length it is "
        f"T_max={steps}",
        stacklevel=3,
    )


def check_rate(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
    """Raise ValueError if the learning rate is 0 and no schedule raises it."""
    if isinstance(scheduler, ReduceLROnPlateau) and not any(float(group["lr"]) for group in optimizer.param_groups):
        raise ValueError("the optimizer's learning rate is 0, so nothing would be learnt; give a higher one")


def check_steps_left(scheduler: LRScheduler, steps: int) -> None:
    """Raise ValueError if a one-cycle schedule has fewer steps left than the run takes; warn if it has more."""
    if not isinstance(scheduler, OneCycleLR):
        return
    left = scheduler.total_steps - scheduler.last_epoch
    if left < steps:
        raise ValueError(
            f"OneCycleLR has {left} of its {scheduler.total_steps} steps left and the run takes {steps}; build "
            "optimizer and scheduler anew before each run"
        )
    if left > steps:
        warnings.warn(
            f"OneCycleLR has {left} steps left and the run takes {steps}, so the rate does not come down in it; build "
            f"it with total_steps={steps}, epochs times len(train_loader), unless more epochs are to follow",
            stacklevel=3,
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
