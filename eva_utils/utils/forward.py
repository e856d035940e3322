"""A model's answer to one batch, and its loss."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import check_batch, check_labels, check_logits, check_loss
from .compiling import unwrap
from .failures import explain_end, failure_explained, is_misfit
from .kept import keep_buffers, keep_modes, keep_rng
from .names import first_line
from .parts import keep_loaders, option_of
from .runtime import autocast, move_images

# Models that reshape by view() what a convolution returns, which torch refuses of maps that lie channels last.
_CONTIGUOUS: WeakSet[nn.Module] = WeakSet()
_NO_VIEW = ("view size is not compatible", "Cannot view a tensor")  # the second where torch compiles
_WEIGHTED = (F.cross_entropy, F.nll_loss)


def use_channels_last(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put a model's weights channels last where it computes in half precision, unless it cannot run so."""
    if _channels_last(model, device, dtype) and all(part.ndim < 5 for part in (*model.parameters(), *model.buffers())):
        model.to(memory_format=torch.channels_last)


def _channels_last(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    # On MPS batch normalization of such maps has wrong gradients (https://github.com/pytorch/pytorch/issues/175189).
    return dtype != torch.float32 and device.type != "mps" and unwrap(model) not in _CONTIGUOUS


def logits_of(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype, *, first: bool) -> Tensor:
    """Return a model's logits (N, C) for a batch that is brought to its device; modes and gradients are the caller's.

    Args:
        model: on the device; if it turns out on its first batch that its maps may not lie channels last, its weights
            are laid out anew, and the batch runs again.
        images: float32 (N, C, H, W), on any device.
        device, dtype: where, and the type that convolutions and matrix products run in.
        first: whether an error of the model is explained by the images' shape, as it may be at its first batch.

    Raises:
        ValueError: the model fails where `first`, or does not return logits.
    """
    last = _channels_last(model, device, dtype)
    images = move_images(images, device, last=last)
    with failure_explained(model, images) if first else nullcontext():
        try:
            logits = _run(model, images, device, dtype)
        except RuntimeError as error:
            if not (first and last) or not any(words in str(error) for words in _NO_VIEW):
                raise
            _CONTIGUOUS.add(unwrap(model))
            logits = _run(model.to(memory_format=torch.contiguous_format), images.contiguous(), device, dtype)
    check_logits(logits, images)
    return logits


def _run(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype) -> Any:
    with autocast(device, dtype):  # which keeps the weights it has cast, in their layout, until it ends
        return model(images)


def forward_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    number: int,
    kind: str = "batch",
) -> tuple[Tensor, Tensor]:
    """Return the logits of a batch and its labels on the device, and say what does not fit."""
    logits = logits_of(model, images, device, dtype, first=number == 0)
    # Labels already on a device are checked once a pass, since reading them waits for it.
    if len(labels) and (number == 0 or labels.device.type == "cpu"):
        check_labels(labels, logits.shape[1], f"{kind} {number}")
    return logits, labels.to(device, non_blocking=device.type == "cuda")


def count_outputs(model: nn.Module, loader: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many logits the model has for a test image, or refuse what does not fit it; nothing is changed."""
    try:
        with keep_modes(model), keep_buffers(model), keep_rng(), keep_loaders(loader), torch.no_grad():
            model.eval()
            for batch in loader:
                images, labels = check_batch(batch, "test batch 0")
                return forward_batch(model, images, labels, device, dtype, 0, "test batch")[0].shape[1]
    except Exception as error:
        explain_end(error, "test batch 0", loader)
        raise
    raise ValueError("test_loader yields nothing; it must yield at least one batch of (images, labels)")


def loss_of(criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, *, first: bool) -> Tensor:
    """Return the mean loss () of a batch.

    Args:
        criterion: takes the logits as float32 (N, C) and the labels, int64 (N,).
        logits, labels: on one device.
        first: whether an error is explained by the shapes, and the loss looked at.

    Raises:
        ValueError: the criterion fails where `first`, or its loss has no gradient where one is wanted.
        TypeError: it returns no single number.
    """
    try:
        loss = criterion(logits.float(), labels)
    except (RuntimeError, ValueError, IndexError) as error:
        if not first or not is_misfit(error):
            raise
        raise ValueError(
            f"the criterion failed on logits {tuple(logits.shape)} and class numbers "
            f"{tuple(labels.shape)}: {first_line(error)}"
        ) from error
    if first:
        check_loss(loss, criterion, logits)
    return loss


def weight_of(criterion: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Tensor | int:
    """Return what a batch's mean loss was divided by: the labels that count, or their weights' sum."""
    if not _counts_labels(criterion):
        return len(labels)
    weight: Any = option_of(criterion, "weight")
    ignored = option_of(criterion, "ignore_index", -100)
    if weight is None:
        return len(labels) if ignored < 0 else (labels != ignored).sum()
    return (weight[labels] * (labels != ignored)).sum()


def all_ignored(criterion: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Tensor | bool:
    """Return whether a loss ignores every label of a batch: it is NaN then, and its gradients are 0."""
    ignored = option_of(criterion, "ignore_index", -100)
    return (labels == ignored).all() if _counts_labels(criterion) and ignored >= 0 else False


def _counts_labels(criterion: Any) -> bool:
    named = getattr(criterion, "func", criterion)
    forward = getattr(type(named), "forward", None)  # of a subclass with its own nothing is known
    return named in _WEIGHTED or forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)
