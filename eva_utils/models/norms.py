"""Normalization layers for convnets by name, and what each one averages over."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.names import unknown_name

Norm = str | Callable[[int], nn.Module]


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels at each pixel of (N, C, H, W), as in ConvNeXt (Liu et al., 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def batch_norm(channels: int) -> nn.Module:
    """Batch normalization (Ioffe and Szegedy, 2015): statistics over N, H and W, for each channel."""
    return nn.BatchNorm2d(channels)


def layer_norm(channels: int) -> nn.Module:
    """Layer normalization (Ba et al., 2016) as convnets mean it: statistics over C, H and W, for each image."""
    return nn.GroupNorm(1, channels)


def channel_norm(channels: int) -> nn.Module:
    """Layer normalization over C alone, at each pixel."""
    return ChannelLayerNorm(channels)


def group_norm(channels: int) -> nn.Module:
    """Group normalization (Wu and He, 2018): gcd(32, channels) groups."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS = {"batch": batch_norm, "layer": layer_norm, "channel": channel_norm, "group": group_norm}


def make_norm(norm: Norm) -> Callable[[int], nn.Module]:
    """Return the function from a channel count to a normalization layer.

    Args:
        norm: "batch", "layer", "channel", "group", or such a function itself (`nn.InstanceNorm2d`, say).

    Raises:
        ValueError: the name is unknown.
    """
    if callable(norm):
        return norm
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm]
