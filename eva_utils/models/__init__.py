"""Classifiers: each takes images (N, 3, H, W) and returns logits (N, num_classes)."""

import inspect

from torch import nn

from ..utils.names import unknown_name
from .centering import center_filters
from .davidnet import davidnet
from .resnet import resnet18, resnet34
from .small_resnet import small_resnet
from .speed_resnet import (
    flip_resnet,
    narrow_flip_resnet,
    speed_resnet,
    speed_resnet4,
    whitened_flip_resnet,
    whitened_flip_resnet4,
    whitened_resnet,
    wide_whitened_flip_resnet4,
)
from .vit import vit

_MODELS = {
    model.__name__: model
    for model in (
        *(resnet18, resnet34, small_resnet, davidnet, vit),
        *(speed_resnet, speed_resnet4, flip_resnet, narrow_flip_resnet),
        *(whitened_resnet, whitened_flip_resnet, whitened_flip_resnet4, wide_whitened_flip_resnet4),
    )
}
__all__ = ["center_filters", "create_model", "list_models", *_MODELS]


def list_models() -> list[str]:
    """Return the names that `create_model` knows."""
    return list(_MODELS)


def create_model(name: str, **kwargs) -> nn.Module:
    """Build a model by name; the keyword arguments go to its constructor.

    Raises:
        ValueError: the name is unknown, the nearest known one is named; or its constructor refuses an argument.
        TypeError: its constructor does not take an argument; those it takes are named.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    known = inspect.signature(_MODELS[name]).parameters
    for argument in kwargs:
        if argument not in known:
            raise TypeError(f"{name} takes {', '.join(known)}, and no {argument}; leave it out")
    return _MODELS[name](**kwargs)
