"""What is refused, or warned of, before any work: numbers out of range, and arguments that do not fit each other."""

import inspect
import math
import numbers
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from .parts import (
    held_parameters,
    is_shuffled,
    loss_parameters,
    option_of,
    parameters_left_out,
    sampler_of,
    trainable_parameters,
)


def check_whole(name: str, value: object, least: int, most: int = 2**31 - 1) -> int:
    """Return the value as Python's own, or raise ValueError unless it is a whole number from `least` to `most`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{name} is a whole number from {least} up, not {value!r}")
    if int(value) > most:
        raise ValueError(f"{name} is a whole number of at most {most}, not {value!r}")
    return int(value)


def is_real(value: object) -> bool:
    """Whether a value is a real number, Python's or numpy's, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_real(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """Return the value as Python's own, or raise ValueError unless it is from `low`, or above it, to below `high`."""
    number = float(value) if is_real(value) else math.nan  # type: ignore[arg-type]
    if not (low <= number < high) or (open_low and number == low):
        bounds = f"{'above' if open_low else 'from'} {low:g}" + (f" and below {high:g}" if high < math.inf else " up")
        raise ValueError(f"{name} is a number {bounds.replace('above 0 up', 'above 0')}, not {value!r}")
    return number


def check_seed(seed: object) -> int:
    """Return the seed as Python's own, or raise ValueError unless it is one that python, numpy and torch all take."""
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"a seed is a whole number from 0 to 2**32 - 1, not {seed!r}")
    return int(seed)


def check_loader(name: str, loader: Any) -> None:
    """Raise unless a loader has a length and something to yield."""
    if isinstance(loader, Iterator) and not hasattr(loader, "__len__"):
        raise TypeError(f"{name} ({type(loader).__name__}) can be passed over only once; pass what it iterates over")
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


def warn_of_loaders(train_loader: Any, test_loader: Any) -> None:
    """Warn if the training images come in order and the test images shuffled, or if they are the same images."""
    if is_shuffled(train_loader) is False and is_shuffled(test_loader):
        warnings.warn(
            "the training loader keeps its order and the test loader shuffles, so they seem to be swapped; "
            "fit takes the training loader first, fit(model, data.train, data.test)",
            stacklevel=3,
        )
    if _have_the_same_images(train_loader, test_loader):
        warnings.warn(
            "the model is tested on the images it trains on, so its accuracy says nothing of new ones; pass data.test, "
            "or data.validation, as the second loader",
            stacklevel=3,
        )


def _have_the_same_images(train_loader: Any, test_loader: Any) -> bool:
    """Whether two loaders are known to give the same images: of one dataset they may still take different parts."""
    both = (train_loader, test_loader)
    fingerprints, datasets = ([getattr(loader, name, None) for loader in both] for name in ("fingerprint", "dataset"))
    whole = all(type(sampler_of(loader)) in (RandomSampler, SequentialSampler) for loader in both)
    return (
        train_loader is test_loader
        or (fingerprints[0] is not None and fingerprints[0] == fingerprints[1])
        or (whole and datasets[0] is not None and datasets[0] is datasets[1])
    )


def warn_of_trained(trained: bool) -> None:
    """Warn if a run begins with the weights of an earlier one."""
    if trained:
        warnings.warn(
            "the model has the weights of an earlier run, and this one trains on from there; build a new model for a "
            "run from scratch",
            stacklevel=3,
        )


def check_data(data: Any, *names: str, more: str = "") -> None:
    """Raise TypeError unless the data has what is named, as that of `load_data` has; `more` says what else would do."""
    for name in names:
        if not hasattr(data, name):
            raise TypeError(f"data is what load_data returned{more}; {type(data).__name__} has no {name}")


def check_module(model: Any) -> None:
    """Raise TypeError unless the model is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")


def check_model(model: Any) -> None:
    """Raise TypeError unless the model is a module that can be called on images alone."""
    check_module(model)
    if model._forward_pre_hooks or type(model).__call__ is not nn.Module.__call__:
        return  # which may give it more
    try:
        inspect.signature(model.forward, follow_wrapped=False).bind(torch.empty(0))
    except TypeError as error:
        raise TypeError(
            f"{type(model).__name__}'s forward cannot be called on images alone ({error}); begin it with "
            "def forward(self, x):"
        ) from None
    except ValueError:
        pass  # written in another language, it has no signature


def check_made(model: Any) -> None:
    """Refuse what is no model, or one whose weights are yet to be made or can have no gradients."""
    check_model(model)
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError(
            "the model has lazy layers that have seen no image, so their weights are yet to be made; run a batch "
            "through it first, as model(torch.zeros(2, 3, 32, 32))"
        )
    if any(parameter.is_inference() or parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model was made inside torch.inference_mode() or on the meta device, so it has no gradients; "
            "build it outside"
        )


def check_trainable(model: Any) -> None:
    """Refuse a model that cannot be trained, or not here."""
    if not torch.is_grad_enabled():
        raise ValueError(
            "gradients are switched off here, by torch.no_grad(), inference_mode() or set_grad_enabled(False); leave "
            "that out"
        )
    check_made(model)
    if not trainable_parameters(model):
        raise ValueError("the model has no trainable parameter; set requires_grad_(True) on those to train")


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse an optimizer that would not train this model."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a torch optimizer such as SGD(model.parameters(), lr=0.1), not {optimizer!r}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS runs the model several times a step, which the loop does not; use SGD or Adam")
    held = held_parameters(optimizer)
    if not {id(parameter) for parameter in held} & {id(parameter) for parameter in model.parameters()}:
        raise ValueError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if not any(parameter.requires_grad for parameter in held):
        raise ValueError("every parameter of the optimizer is frozen; set requires_grad_(True) on those to train")
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(math.isfinite(rate) for rate in rates):
        raise ValueError(f"the optimizer's learning rates are {rates}; give finite ones")
    decays = [group.get("weight_decay") or 0 for group in optimizer.param_groups]  # None is none, too
    if any(decay < 0 for decay in decays):
        raise ValueError(
            f"the optimizer's weight decays are {decays}; a negative one makes the weights grow: give 0 or more"
        )


def check_criterion(criterion: Any) -> None:
    """Refuse what is no loss, or none that is a mean."""
    if criterion is not None and (isinstance(criterion, type) or not callable(criterion)):
        raise TypeError(f"criterion is a loss such as nn.CrossEntropyLoss(), with its parentheses, not {criterion!r}")
    reduction = option_of(criterion, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(f"the criterion must average over the batch, not reduction={reduction!r}")


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
    check_trainable(model)
    check_loader("train_loader", train_loader)
    check_loader("test_loader", test_loader)
    check_criterion(criterion)
    if optimizer is not None:
        check_optimizer(optimizer, model)
        lowest = min(float(group["lr"]) for group in optimizer.param_groups)
        if scheduler is None and lowest < 0:
            raise ValueError(
                f"the optimizer's learning rate is {lowest:g}, as a one-cycle schedule leaves it at its end; "
                "build optimizer and scheduler anew before each run"
            )
        _warn_of_parameters(optimizer, model)
    held = {id(parameter) for parameter in held_parameters(optimizer)} if optimizer else set()
    if any(id(parameter) not in held for parameter in loss_parameters(criterion)):
        warnings.warn(
            "the loss has parameters that are not in the optimizer and stay as they are; build the optimizer from "
            "[*model.parameters(), *criterion.parameters()]",
            stacklevel=3,
        )


def _warn_of_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    left_out, count = parameters_left_out(model, optimizer), len(list(model.parameters()))
    left = [name for name, parameter in left_out.items() if parameter.requires_grad]
    if left:
        warnings.warn(
            f"{len(left)} of the model's {count} parameters are not in the optimizer, as {left[0]!r}, and stay as "
            "they are; if that is meant, set requires_grad_(False) on them, else build the optimizer after the last "
            "change of the model",
            stacklevel=4,
        )


def check_log(log: Any) -> None:
    """Raise TypeError unless what takes the log's lines can be called, or is None."""
    if log is not None and not callable(log):
        raise TypeError(f"log takes a line of text, as print does, or is None; {log!r} cannot be called")


def check_decay(ema: float | None) -> float | None:
    """Return the decay of averaged weights, or raise ValueError unless it is in range, or None."""
    return None if ema is None else check_real("ema", ema, 0, 1)


def check_clip(clip: float | None) -> float | None:
    """Return the gradient's largest norm, or raise ValueError unless it is above 0, or None."""
    return None if clip is None else check_real("clip", clip, 0, open_low=True)
