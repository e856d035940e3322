"""A model's answer to one batch, and its loss."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .batches import check_logits, check_loss, failure_explained, is_misfit
from .names import first_line
from .runtime import autocast, move_images


def logits_of(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype, *, first: bool) -> Tensor:
    """Return a model's logits (N, C) for a batch that is brought to its device; modes and gradients are the caller's.

    Args:
        model: on the device.
        images: float32 (N, C, H, W), on any device.
        device, dtype: where, and the type that convolutions and matrix products run in.
        first: whether an error of the model is explained by the images' shape, as it may be at its first batch.

    Raises:
        ValueError: the model fails on its first batch, or does not return logits.
    """
    images = move_images(images, device, dtype)
    with failure_explained(model, images) if first else nullcontext(), autocast(device, dtype):
        logits = model(images)
    check_logits(logits, images)
    return logits


def loss_of(criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, *, first: bool) -> Tensor:
    """Return the mean loss () of a batch.

    Args:
        criterion: takes the logits as float32 (N, C) and the labels, int64 (N,).
        logits, labels: on one device.
        first: whether an error is explained by the shapes, and the loss looked at.

    Raises:
        ValueError: the criterion fails on the first batch, or its loss has no gradient where one is wanted.
        TypeError: it returns no single number.
    """
    try:
        loss = criterion(logits.float(), labels)
    except (RuntimeError, ValueError, IndexError) as error:
        if not first or not is_misfit(error):
            raise
        raise ValueError(
            f"the criterion failed on its first batch, logits {tuple(logits.shape)} and class numbers "
            f"{tuple(labels.shape)}: {first_line(error)}"
        ) from error
    if first:
        check_loss(loss, criterion, logits)
    return loss
