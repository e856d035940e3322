"""Layers for a network that gives an image and its mirror image, flipped left to right, the same logits.

Between them the second half of a map's channels is what the first would be for the mirror image, flipped back; so a
flip of the image flips the maps and swaps the halves. These are group convolutions (Cohen and Welling, 2016,
https://arxiv.org/abs/1602.07576) for shifts and this one reflection.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import convolve
from .norms import channels_first
from .resnet import standardized


class FlipConv2d(nn.Conv2d):
    """A 3x3 convolution (N, inputs, H, W) to (N, outputs, H, W), of which half the filters are stored.

    The others are the same, flipped, with the halves of their inputs swapped. There is no bias, since a norm follows.
    The fan of an initialization counts what is stored.

    Args:
        inputs: channels, even.
        outputs: channels, even.
        standardize: whether the weights are standardized before they are used, see `StandardizedConv2d`.

    Raises:
        ValueError: a number of channels is odd.
    """

    def __init__(self, inputs: int, outputs: int, standardize: bool = False) -> None:
        if inputs % 2 or outputs % 2:
            raise ValueError(f"a FlipConv2d has even numbers of channels, not {inputs} and {outputs}")
        super().__init__(inputs, outputs // 2, kernel_size=3, padding=1, bias=False)
        self.out_channels = outputs
        self.standardize = standardize

    def forward(self, x: Tensor) -> Tensor:
        weight = standardized(self.weight) if self.standardize else self.weight
        first, second = weight.chunk(2, dim=1)
        return convolve(self, x, torch.cat([weight, torch.cat([second, first], dim=1).flip(3)]))


class FlipLift(FlipConv2d):
    """A `FlipConv2d` for images (N, inputs, H, W), stacked on themselves: of a pair of weights the sum counts."""

    def __init__(self, inputs: int, outputs: int, standardize: bool = False) -> None:
        super().__init__(2 * inputs, outputs, standardize)
        self.in_channels = inputs

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x], dim=1))


class FlipNorm(nn.Module):
    """A norm of half the channels, which takes the other half for further pixels: (N, channels, H, W) to the same."""

    def __init__(self, norm: Callable[[int], nn.Module], channels: int) -> None:
        super().__init__()
        self.norm = norm(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = channels_first(x.permute(0, 2, 3, 1).reshape(count, height, 2 * width, channels // 2))
        return channels_first(self.norm(x).permute(0, 2, 3, 1).reshape(count, height, width, channels))


class FlipPool(nn.Module):
    """Max pooling by 2 whose windows lie symmetrically: of 2 along an even side, of 3 that overlap along an odd one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, (2 + x.shape[2] % 2, 2 + x.shape[3] % 2), stride=2)
