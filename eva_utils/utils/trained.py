"""Recognise a model whose weights come from a run in this process."""

import hashlib

import torch
from torch import nn

_TRAINED: set[str] = set()  # digests of the weights that runs left or `load_weights` loaded, in this process


def note_trained(model: nn.Module) -> None:
    """Remember a model's weights as those of a run."""
    _TRAINED.add(_digest(model))


def is_trained(model: nn.Module) -> bool:
    """Whether a model has weights that a run left or `load_weights` loaded, in this process."""
    return _digest(model) in _TRAINED


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        weights = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        digest.update(weights.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
