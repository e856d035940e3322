"""A residual network that learns CIFAR-10 in minutes on two CPU cores, with LayerNorm."""

from collections.abc import Callable

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
    """Three stages of 64, 256 and 256 channels: convolution, max pooling by 2, norm, ReLU, one residual convolution.

    The shape, the head on the maximum of the maps and its small logits are those of the fast CIFAR-10 trainings
    (Jordan, 2024, https://arxiv.org/abs/2404.00498), without their frozen whitening and batch normalization.

    Args:
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.
        standardize: whether every convolution standardizes its weights, see `StandardizedConv2d`.
    """

    def __init__(self, num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> None:
        super().__init__()
        make, conv = make_norm(norm), StandardizedConv2d if standardize else nn.Conv2d
        self.layer1 = self._stage(3, 64, make, conv)
        self.layer2 = self._stage(64, 256, make, conv)
        self.layer3 = self._stage(256, 256, make, conv)
        self.fc = nn.Linear(256, num_classes, bias=False)
        init_convolutions(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, norm: Callable[[int], nn.Module], conv: type[nn.Conv2d]) -> nn.Sequential:
        reduce = (conv3x3(inputs, outputs, 1, conv), nn.MaxPool2d(2), norm(outputs), nn.ReLU())
        return nn.Sequential(*reduce, ResidualConv(outputs, norm, conv))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.amax(dim=(2, 3))) / 9


def speed_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SpeedResNet:
    """Build a network of 1,960,384 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up."""
    return SpeedResNet(num_classes, norm, standardize)
