"""A model's answer to one batch."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .batches import check_logits, failure_explained
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
