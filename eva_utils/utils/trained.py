"""Which weights are those of a run: a model that has them is not new."""

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

_TRAINED: set[str] = set()  # digests of the weights that runs trained or `load_weights` loaded, in this process


def note_trained(model: nn.Module) -> None:
    """Remember a model's weights as those of a run; frozen ones were not trained in it."""
    _TRAINED.update(digest for digest, parameter in _digests(model) if parameter.requires_grad)


def is_trained(model: nn.Module) -> bool:
    """Whether more than half of a model's weights are such as a run trained or `load_weights` loaded, in this process.

    So it has them behind a new last layer, too.
    """
    known = sum(parameter.numel() for digest, parameter in _digests(model) if digest in _TRAINED)
    return 2 * known > sum(parameter.numel() for parameter in model.parameters())


def _digests(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for parameter in model.parameters():
        weights = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        yield hashlib.sha256(weights.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest(), parameter
