"""Layers of a network that takes an image and its mirror image for the same: they are equivariant to a flip.

Of the C channels between them the second half holds, flipped, what the first half would hold if the image were flipped
(Cohen and Welling, 2016, https://arxiv.org/abs/1602.07576, for the group of the identity and one reflection).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .resnet import standardized


class FlipConv2d(nn.Conv2d):
    """A convolution (N, inputs, H, W) to (N, outputs, H, W) of which half the filters are the others, flipped."""

    def __init__(self, inputs: int, outputs: int, **kwargs) -> None:
        super().__init__(inputs, outputs // 2, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, with_flipped(self.weight), self.bias)


class StandardizedFlipConv2d(FlipConv2d):
    """A `FlipConv2d` whose weights are standardized as those of `StandardizedConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, with_flipped(standardized(self.weight)), self.bias)


class FlipNorm(nn.Module):
    """A norm of half the channels, that takes the other half for further pixels: (N, channels, H, W) to the same."""

    def __init__(self, norm: Callable[[int], nn.Module], channels: int) -> None:
        super().__init__()
        self.norm = norm(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1).reshape(count, height, 2 * width, channels // 2).permute(0, 3, 1, 2)
        return self.norm(x).permute(0, 2, 3, 1).reshape(count, height, width, channels).permute(0, 3, 1, 2)


def with_flipped(weight: Tensor) -> Tensor:
    """Return (outputs, inputs, h, w): filters (outputs / 2, inputs, h, w), and below them those for a flipped input."""
    return torch.cat([weight, weight.roll(weight.shape[1] // 2, dims=1).flip(3)])
