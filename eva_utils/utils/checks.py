"""What `fit` refuses before any work."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a step changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


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
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"epochs is a whole number from 1 up, not {epochs!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}; pass the model itself")
    if not trainable_parameters(model):
        raise ValueError("the model has no trainable parameter; set requires_grad_(True) on those to train")
    for name, loader in (("train_loader", train_loader), ("test_loader", test_loader)):
        if not hasattr(loader, "__len__"):
            raise TypeError(f"{name} has no length; pass a DataLoader or one of load_data's loaders")
        if len(loader) == 0:
            raise ValueError(f"{name} is empty; it must yield at least one batch of (images, labels)")
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer; pass the optimizer it was built with")
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < epochs * len(train_loader):
        raise ValueError(
            f"OneCycleLR was built for {scheduler.total_steps} steps and the run takes {epochs} epochs of "
            f"{len(train_loader)} batches; build it with epochs={epochs}, steps_per_epoch={len(train_loader)}"
        )
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(f"the criterion must average over the batch, not reduction={criterion.reduction!r}")
