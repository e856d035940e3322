"""Normalization layers for convnets by name, and what each one averages over."""

import math
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.names import unknown_name

Norm = str | Callable[[int], nn.Module]


def channels_first(x: Tensor) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W): a view, which lies channels last, but on an Apple GPU a copy.

    There the gradients of activations, pooling and batch normalization of such views are wrong, or end the process
    (https://github.com/pytorch/pytorch/issues/175188 to 175190).
    """
    x = x.permute(0, 3, 1, 2)
    return x.contiguous() if x.device.type == "mps" else x


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels at each pixel of (N, C, H, W), as in ConvNeXt (Liu et al., 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return channels_first(x)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,  # Ioffe and Szegedy, 2015: statistics over N, H and W, for each channel
    "layer": partial(nn.GroupNorm, 1),  # Ba et al., 2016, as convnets mean it: over C, H and W, for each image
    "channel": ChannelLayerNorm,  # over C alone, at each pixel
    "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),  # Wu and He, 2018
}


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
