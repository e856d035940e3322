"""What a loader yields and a model returns: batches, logits, losses and labels that do not fit get one sentence."""

import warnings
from collections.abc import Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_batch(batch: Any, name: str, unlabelled: bool = False) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of a batch, or raise if it is not (float32 images, int64 labels).

    Args:
        batch: what a loader yielded.
        name: names the batch in the message, as "batch 3".
        unlabelled: whether it may have an image and no label, as one process's part of a small batch has.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        kind = type(batch).__name__
        if isinstance(batch, tuple | list):
            kind += f" of {len(batch)} ({', '.join(type(part).__name__ for part in batch[:3])})"
        raise ValueError(
            f"{name} is a {kind}; a loader must yield pairs of tensors (images, labels), as DataLoader(dataset, 128) "
            "does of a dataset"
        )
    images, labels = batch
    if images.ndim == 3 and not labels.ndim:
        raise ValueError(
            f"{name} is one image and its label; make batches of the dataset, as DataLoader(dataset, 128) does"
        )
    if images.dtype != torch.float32 or images.ndim < 2:
        raise ValueError(
            f"the images of {name} are {_kind(images)}; give float32 (N, C, H, W), as torchvision's "
            "v2.ToDtype(torch.float32, scale=True) and v2.Normalize make of uint8"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        advice = ""
        if labels.ndim == 2:
            columns = "drop their second axis with labels.squeeze(1)"
            advice = f"; {columns if labels.shape[1] == 1 else 'turn one-hot rows into numbers with labels.argmax(1)'}"
        raise ValueError(f"the labels of {name} are {_kind(labels)}; give class numbers, int64 (N,){advice}")
    fits = len(images) == len(labels) if len(labels) else unlabelled
    if not fits:
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels; give one label an image")
    return images, labels


def check_logits(logits: Any, images: Tensor) -> None:
    """Raise unless a model's output is floating point (N, C)."""
    found = _kind(logits) if isinstance(logits, Tensor) else type(logits).__name__
    is_float = isinstance(logits, Tensor) and logits.is_floating_point()
    if not is_float or logits.ndim != 2 or len(logits) != len(images):
        advice = ""
        if hasattr(logits, "logits"):  # of torchvision's GoogLeNet and Inception; of other packages' models
            auxiliary = any(name.startswith("aux_logits") for name in getattr(logits, "_fields", ()))
            advice = "; build it with aux_logits=False" if auxiliary else ", as the .logits of this output"
        raise ValueError(
            f"the model returned {found} for {len(images)} images; it must return logits, floating point "
            f"(N, classes){advice}"
        )


def check_loss(loss: Any, criterion: Any, logits: Tensor) -> None:
    """Raise unless a criterion returned one number, with a gradient where one is wanted, of inputs it is made for.

    Cross entropy of what a softmax returned is warned of.
    """
    if not isinstance(loss, Tensor) or loss.ndim:
        found = _kind(loss) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"the criterion returned {found}; it must return the mean loss of the batch, a tensor of no dimensions, "
            "so leave out .item() and end in .mean()"
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        if not logits.requires_grad:
            raise ValueError(
                "the logits have no gradient; see whether forward() uses no_grad(), detach() or numpy, or leaves out "
                "the layers that are to be trained"
            )
        raise ValueError(
            "the loss has no gradient; compute it from the logits with torch operations, without detach(), argmax() "
            "or numpy"
        )
    function = getattr(criterion, "func", criterion)
    is_cross_entropy = isinstance(criterion, nn.CrossEntropyLoss) or function is F.cross_entropy
    if is_cross_entropy and are_probabilities(logits):
        warnings.warn(
            "the model ends in a softmax and cross entropy applies one itself, so the loss cannot come near 0; "
            "return the logits instead",
            stacklevel=1,  # one place, so that Python shows it once
        )
    if isinstance(criterion, nn.NLLLoss) or function is F.nll_loss:
        totals = logits.detach().float().logsumexp(dim=1)
        rounding = 1e-2 if logits.dtype == torch.float32 else 0.1
        if (totals[totals.isfinite()].abs() > rounding).any():
            raise ValueError(
                "NLLLoss takes log-probabilities and the model returns logits; use nn.CrossEntropyLoss(), or end the "
                "model in log_softmax"
            )


def check_labels(labels: Tensor, classes: int, name: str) -> None:
    """Raise unless every label is from 0 to classes - 1; this waits for the labels' device."""
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} has labels from {low} to {high} and the model {classes} classes; "
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


def check_outputs(outputs: int, *loaders: Any) -> None:
    """Raise ValueError if a class of `load_data`'s loaders has no output of the model; warn of unused outputs."""
    known = [loader.classes for loader in loaders if hasattr(loader, "fingerprint")]
    classes = max(known, default=outputs)
    found = f"the model has {outputs} outputs and the data {classes} classes"
    if outputs < classes:
        raise ValueError(f"{found}; build it with num_classes=len(data.classes)")
    if len(known) == len(loaders) and outputs > classes:
        warnings.warn(
            f"{found}; the figures and the report want as many of one as of the other, so build it with "
            f"num_classes={classes}",
            stacklevel=3,
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
