"""The learning-rate range test."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .batches import check_batch, check_labels
from .checks import check_fit, check_loader, check_real, check_whole
from .failures import explain_end, free_memory, overflow_advice
from .forward import logits_of, loss_of
from .kept import keep_buffers, keep_modes, keep_rng
from .optim import clear_gradients, prepare_fused, rate_shares
from .parts import held_parameters, keep_loaders, parameters_left_out
from .runtime import pick_device, pick_precision

SMOOTHING, DIVERGED = 0.05, 5  # share of a new loss in the running mean; how many times the lowest one ends the test
SKIPPED = (10, 5)  # steps at the start and at the end in which no suggestion is looked for
CLEAR = 0.1  # share by which the loss must fall for a suggestion


class RateCurve(NamedTuple):
    """The rates that were tried, the smoothed loss at each, and the rate suggested, None without a clear fall."""

    rates: list[float]
    losses: list[float]
    suggestion: float | None

    def __repr__(self) -> str:
        suggestion = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"RateCurve({len(self.rates)} rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}, {suggestion})"


def lr_find(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> RateCurve:
    """Train with a rate that rises exponentially from `start` to `end`, and suggest a rate from the losses.

    The test ends early where the running mean of the loss, in which each batch counts 5%, is five times its lowest
    value, or not finite (Smith, 2017, https://arxiv.org/abs/1506.01186, with the conventions of the
    torch-lr-finder package). Returned is that mean without its bias towards the first loss, which is taken out as
    in Adam (Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980, section 3). The suggestion is where it falls
    fastest per log-rate on the way to its lowest value, but for the first ten and the last five steps; there is
    none where it falls by less than a tenth. It lags up to twenty batches behind the loss itself.
    Model, optimizer, its scheduler, loader, modes and random generators are then as they were. Only what a
    part keeps outside its state_dict and its buffers, as a generator or a counter of its own, is not put back.

    Args:
        model: returns logits (N, C).
        loader: batches (images, labels), at least 16; a loader shorter than the test begins anew.
        optimizer: over the model's parameters; of several groups the rate is the first's, to which the
            others keep their ratio.
        criterion: mean loss of a batch; cross entropy if None.
        start, end: rates of the first and of the last step.
        steps: batches to train on, at least 20.
        device, precision: see `eva_utils.main.train`.

    Raises:
        ValueError: a number is out of range, the loader is too short, the loss is negative or diverged within 16
            steps, or what `fit` refuses.
        TypeError: an argument is not what its name says.
    """
    check_loader("loader", loader)
    if optimizer is None:
        raise TypeError("lr_find takes the optimizer of the run to come, as SGD(model.parameters(), lr=0.1), not None")
    check_fit(model, loader, loader, 1, optimizer, None, criterion)
    check_real("end", end, 0, open_low=True)
    check_real("start", start, 0, end, open_low=True)
    check_whole("steps", steps, 20)
    least = sum(SKIPPED) + 1
    if len(loader) < least:
        raise ValueError(f"the loader has {len(loader)} batches and lr_find wants {least}; make the batches smaller")
    device = pick_device(device)
    dtype = pick_precision(precision, device)
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    if isinstance(criterion, nn.Module):
        # Its parameters are the optimizer's, and put back with them; what else it keeps is a copy's.
        criterion = copy.deepcopy(criterion, {id(part): part for part in criterion.parameters()}).to(device)
    rates = [start * (end / start) ** (step / (steps - 1)) for step in range(steps)]
    try:
        with _as_they_were(model, optimizer), keep_buffers(model), keep_loaders(loader), keep_rng(), keep_modes(model):
            losses = _sweep(model, loader, optimizer, criterion, rates, device, dtype)
    except Exception as error:
        free_memory(error)
        explain_end(error, "lr_find", loader)
        raise
    rates = rates[: len(losses)]
    if len(losses) < least:
        where = (
            f"diverged after {len(losses)} steps, at a rate of {rates[-1]:.1e}" if rates else "is not finite at first"
        )
        raise ValueError(
            f"the loss {where}; lower start, or see whether images and model are in order (eva.preflight)"
            + overflow_advice(dtype)
        )
    return RateCurve(rates, losses, _steepest(rates, losses))


def _sweep(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    rates: list[float],
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """Train a step at each rate and return the smoothed losses, fewer where it diverges."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    losses: list[float] = []
    first = smooth = lowest = math.inf
    shares, left_out = rate_shares(optimizer), parameters_left_out(model, optimizer).values()
    model.to(device).train()
    for step, (rate, batch) in enumerate(zip(rates, _endless(loader), strict=False)):
        images, labels = check_batch(batch, f"batch {step}")
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = share * rate
        clear_gradients(optimizer, left_out)
        logits = logits_of(model, images, device, dtype, first=step == 0)
        check_labels(labels, logits.shape[1], f"batch {step}")
        loss = loss_of(criterion, logits, labels.to(device), first=step == 0)
        value = loss.item()
        if value < 0:
            raise ValueError(
                f"the loss of batch {step} is {value:.3g}; lr_find wants one that is never negative, as "
                "CrossEntropyLoss"
            )
        if not math.isfinite(value):
            break
        first, smooth = (first, SMOOTHING * value + (1 - SMOOTHING) * smooth) if step else (value, value)
        bias = (1 - SMOOTHING) ** (step + 1)
        losses.append((smooth - bias * first) / (1 - bias))
        lowest = min(lowest, smooth)
        if smooth > DIVERGED * lowest:
            break
        scaler.scale(loss).backward()
        if not step:
            prepare_fused(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return losses


def _steepest(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate at which the loss falls fastest per log-rate before it is lowest, None without a clear fall."""
    begin, end = SKIPPED[0], min(int(np.argmin(losses)) + 1, len(losses) - SKIPPED[1])
    if end - begin < 2 or min(losses) > (1 - CLEAR) * losses[begin]:
        return None
    slopes = np.gradient(losses[begin:end], np.log(rates[begin:end]))
    return rates[begin + int(np.argmin(slopes))]


def _endless(loader: Any) -> Iterator[Any]:
    """Yield the batches of pass after pass; where a loader counts epochs, each is another one."""
    for number in count():
        if number and hasattr(loader, "set_epoch") and hasattr(loader, "epoch"):
            loader.set_epoch(loader.epoch + 1)
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("the loader yields nothing the second time; pass a loader that can be iterated anew")


@contextmanager
def _as_they_were(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put back weights, gradients, and the optimizer's state and rates."""
    home = next(model.parameters()).device
    weights = copy.deepcopy(model.state_dict())
    trained = set(held_parameters(optimizer))
    others = {parameter: parameter.detach().clone() for parameter in trained - set(model.parameters())}  # of the loss
    gradients = {parameter: parameter.grad for parameter in [*model.parameters(), *others]}
    state = copy.deepcopy(optimizer.state_dict())
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        model.to(home)
        model.load_state_dict(weights)
        for parameter, value in others.items():
            parameter.data.copy_(value)
        optimizer.load_state_dict(state)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
