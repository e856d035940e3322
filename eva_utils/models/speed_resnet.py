"""Residual networks that learn CIFAR-10 in minutes on two CPU cores, with LayerNorm."""

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .norms import Norm, make_norm
from .resnet import StandardizedConv2d, conv3x3, init_convolutions


class ResidualConv(nn.Module):
    """A 3x3 convolution, norm and ReLU added to what goes in: (N, channels, H, W) to the same shape."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, 1, conv)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class SpeedResNet(nn.Module):
    """Stages of a convolution, max pooling by 2 while the map is large, norm, ReLU and one residual convolution.

    The shape, the head on the maximum of the maps and its small logits are those of the fast CIFAR-10 trainings
    (Jordan, 2024, https://arxiv.org/abs/2404.00498), without their frozen whitening and batch normalization.

    Args:
        widths: channels of each stage, `layer1` and so on.
        pooled: how many of the first stages halve the map.
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.
        standardize: whether every convolution standardizes its weights, see `StandardizedConv2d`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        pooled: int,
        num_classes: int = 10,
        norm: Norm = "layer",
        standardize: bool = False,
    ) -> None:
        super().__init__()
        make, conv = make_norm(norm), StandardizedConv2d if standardize else nn.Conv2d
        self.stages = len(widths)
        for number, (inputs, outputs) in enumerate(pairwise((3, *widths)), start=1):
            pool = [nn.MaxPool2d(2)] if number <= pooled else []
            first = (conv3x3(inputs, outputs, 1, conv), *pool, make(outputs), nn.ReLU())
            setattr(self, f"layer{number}", nn.Sequential(*first, ResidualConv(outputs, make, conv)))
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.amax(dim=(2, 3))) / 9


def speed_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build three stages, 1,960,384 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up."""
    return SpeedResNet((64, 256, 256), 3, num_classes, norm, standardize)


def speed_resnet4(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build four stages, 3,141,056 parameters at 10 classes, whose last three keep a 32x32 image's map at 8x8."""
    return SpeedResNet((64, 256, 256, 256), 2, num_classes, norm, standardize)
