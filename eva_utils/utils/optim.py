"""Parameter groups and one cycle; optimizers by name for the command line."""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn, optim

from .checks import check_module, check_real, check_whole
from .muon import Muon
from .names import unknown_name
from .parts import trainable_parameters

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
SCHEDULERS = ("plateau", "one_cycle")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups for an optimizer: weights that decay, and norms and biases that do not.

    Norm weights and all biases are the parameters with at most one dimension (He et al., 2019,
    https://arxiv.org/abs/1812.01187, section 3.1). Frozen parameters are left out.

    Raises:
        TypeError: `model` is no model, nor a loss with parameters.
        ValueError: the decay is negative.
    """
    check_module(model)
    weight_decay = check_real("weight_decay", weight_decay, 0)
    trainable = trainable_parameters(model)
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_shares(optimizer: optim.Optimizer) -> list[float]:
    """Return the rate of each group as a share of the first group's; 1 for each where that is 0."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return [rate / rates[0] if rates[0] > 0 else 1.0 for rate in rates]


def one_cycle(
    optimizer: optim.Optimizer,
    epochs: int,
    steps_per_epoch: int,
    lr_max: float,
    lr_min: float,
    peak_epoch: float = 5,
    annihilate: bool = False,
) -> optim.lr_scheduler.OneCycleLR:
    """Build the schedule that rises from `lr_min` to `lr_max` and falls back, linearly, batch by batch.

    With several groups of parameters the rates are the first one's; the others keep their ratio to it. It is torch's
    OneCycleLR with its cycle of the momentum off (Smith and Topin, 2018, https://arxiv.org/abs/1708.07120).

    Args:
        optimizer: its rates are replaced.
        epochs: of the run.
        steps_per_epoch: batches in an epoch, len(loader).
        lr_max: rate at the peak.
        lr_min: rate of the first batch and, unless it is to be annihilated, of the last.
        peak_epoch: epochs after which the peak is reached.
        annihilate: whether the rate falls on, to lr_min / 10,000.

    Raises:
        ValueError: a number is out of range.
        TypeError: `optimizer` is none.
    """
    if not isinstance(optimizer, optim.Optimizer):
        raise TypeError(
            f"one_cycle takes an optimizer, as SGD(model.parameters(), lr=0.1), not {type(optimizer).__name__}"
        )
    epochs, steps_per_epoch = check_whole("epochs", epochs, 1), check_whole("steps_per_epoch", steps_per_epoch, 1)
    check_real("lr_max", lr_max, 0, open_low=True)
    check_real("lr_min", lr_min, 0, lr_max, open_low=True)
    check_real("peak_epoch", peak_epoch, 0, epochs, open_low=True)
    steps = epochs * steps_per_epoch
    peak = round(peak_epoch * steps_per_epoch)  # of the steps the one with the highest rate, else it falls between two
    if steps < 3:
        raise ValueError(f"a cycle takes three batches at least and the run has {steps}; train longer")
    if not 1 < peak < steps:
        place, advice = ("first", "a later") if peak <= 1 else ("last", "an earlier")
        raise ValueError(
            f"peak_epoch={peak_epoch:g} puts the peak on the {place} batch (an epoch has {steps_per_epoch}); give "
            f"{advice} peak_epoch= or a smaller batch_size="
        )
    return optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[lr_max * share for share in rate_shares(optimizer)],
        total_steps=steps,
        pct_start=peak / steps,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=lr_max / lr_min,
        final_div_factor=1e4 if annihilate else 1,
    )


def learning_rates(scheduler: optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """Return the rate of each of the next `steps` steps, for `plot_schedule`; the scheduler is left as it is.

    `fit` steps OneCycleLR and CyclicLR after every batch and any other scheduler after every epoch. Of several
    groups of an optimizer the rate is the first one's.

    Raises:
        ValueError: `steps` is out of range, or more than a one-cycle schedule has left.
        TypeError: it is no scheduler, or follows a metric and has no rates of its own.
    """
    check_whole("steps", steps, 1)
    if not isinstance(scheduler, optim.lr_scheduler.LRScheduler):
        raise TypeError(f"learning_rates takes a scheduler, as one_cycle returns, not {type(scheduler).__name__}")
    if isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError(
            "ReduceLROnPlateau follows the losses of a run; plot_schedule(history) draws what it made of them"
        )
    if isinstance(scheduler, optim.lr_scheduler.OneCycleLR):
        left = scheduler.total_steps - scheduler.last_epoch
        if steps > left:
            raise ValueError(
                f"OneCycleLR has {left} of its {scheduler.total_steps} steps left, not {steps}; build optimizer and "
                "scheduler anew, or ask for fewer"
            )
    state = copy.deepcopy(scheduler.state_dict())
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in scheduler.optimizer.param_groups
    ]
    rates = [float(scheduler.optimizer.param_groups[0]["lr"])]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no optimizer steps between
            for _ in range(steps - 1):
                scheduler.step()
                rates.append(float(scheduler.optimizer.param_groups[0]["lr"]))
    finally:
        scheduler.load_state_dict(state)
        for group, before in zip(scheduler.optimizer.param_groups, groups, strict=True):
            for name, value in before.items():
                group[name] = group[name].copy_(value) if isinstance(value, Tensor) else value
    return rates


def clear_gradients(optimizer: optim.Optimizer, left_out: Iterable[nn.Parameter]) -> None:
    """Have the optimizer clear its gradients, and drop those of parameters it does not have, which would add up."""
    optimizer.zero_grad()
    for parameter in left_out:
        parameter.grad = None


def prepare_fused(optimizer: optim.Optimizer) -> None:
    """Ready the state of a fused optimizer for a step: momentum begins at 0, and each tensor lies as its weights do.

    Torch's fused kernels take what they are given as it comes. SGD's buffers stay what memory held if the first step
    overflows in float16 and is left out; some at hand and some not, as where a layer has its first gradient after that
    step, are an error; and of a tensor that lies otherwise than the weights the wrong elements are paired with theirs.
    """
    for group in optimizer.param_groups:
        if not group.get("fused"):
            continue
        has_momentum = isinstance(optimizer, optim.SGD) and group["momentum"] and not group["dampening"]
        for parameter in group["params"]:
            if has_momentum and parameter.requires_grad:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            state = optimizer.state.get(parameter, {})
            alike = {name: value for name, value in state.items() if getattr(value, "shape", None) == parameter.shape}
            for name, value in alike.items():
                if value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    fused: bool | None = None,
) -> optim.Optimizer:
    """Build an optimizer over `param_groups`; `momentum` and `nesterov` are SGD's, `momentum` also Adam's first beta.

    Of "muon" `lr` is that of the convolutions, whose momentum is 0.6; everything else, a last layer that is a
    convolution too, gets 2.5 times the rate, and `momentum` and `weight_decay`.

    Raises:
        ValueError: the name is not one of `OPTIMIZERS`, or a number is out of range.
    """
    check_real("lr", lr, 0, open_low=True)
    check_real("momentum", momentum, 0, 1)
    groups = param_groups(model, weight_decay)
    if name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    if name == "adam":
        return optim.Adam(groups, lr=lr, betas=(momentum, 0.999), fused=fused)
    if name == "adamw":
        return optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=fused)
    if name == "muon":
        return _make_muon(model, groups, lr, momentum)
    raise unknown_name("optimizer", name, OPTIMIZERS)


def _make_muon(model: nn.Module, groups: list[dict], lr: float, momentum: float) -> Muon:
    """Build Muon over two groups of parameters and a third, of the convolutions but for a last layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # A layer's parameters, and not its weight, which is made of one where it is centered.
    held = (parameter for layer in layers[:-1] if isinstance(layer, nn.Conv2d) for parameter in layer.parameters())
    chosen = {id(parameter) for parameter in held if parameter.ndim > 1}
    convolutions = [parameter for parameter in groups[0]["params"] if id(parameter) in chosen]
    made: list[dict] = [{"params": convolutions}]
    for group in groups:
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        made.append({**group, "params": others, "lr": 2.5 * lr, "momentum": momentum, "orthogonal": False})
    return Muon([group for group in made if group["params"]], lr=lr)
