"""A small residual network for quick experiments: about a minute an epoch of CIFAR-10 on two CPU cores."""

from collections.abc import Callable

from torch import Tensor, nn

from ..utils.checks import check_whole
from .conv import Conv2d
from .norms import Norm, make_norm
from .resnet import BasicBlock, StandardizedConv2d, conv3x3, global_max, init_convolutions


class SmallResNet(nn.Module):
    """Three stages of 64, 128 and 256 channels; each halves the map by max pooling, then one basic block.

    The last norm of each block starts from weight 0, so that the block starts as the identity (Goyal et
    al., 2017, https://arxiv.org/abs/1706.02677). Convolutions start as in `eva_utils.models.resnet`. The
    maps are pooled by their maximum and the logits scaled by 1/8, as in David Page's ResNet-9 (2018,
    "How to Train Your ResNet").

    Args:
        num_classes: width of the logits.
        norm: see `eva_utils.models.norms.make_norm`; no other normalization is in the model.
        standardize: whether every convolution standardizes its weights, see `StandardizedConv2d`.

    Raises:
        ValueError: `num_classes` is no whole number from 1 up, or the norm is unknown.
    """

    def __init__(self, num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> None:
        super().__init__()
        check_whole("num_classes", num_classes, 1)
        make, conv = make_norm(norm), StandardizedConv2d if standardize else Conv2d
        self.layer1 = self._stage(3, 64, make, conv)
        self.layer2 = self._stage(64, 128, make, conv)
        self.layer3 = self._stage(128, 256, make, conv)
        self.fc = nn.Linear(256, num_classes)
        init_convolutions(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, norm: Callable[[int], nn.Module], conv: type[nn.Conv2d]) -> nn.Sequential:
        block = BasicBlock(outputs, outputs, 1, norm, conv)
        weight = getattr(block.norm2, "weight", None)
        if isinstance(weight, nn.Parameter):
            nn.init.zeros_(weight)
        return nn.Sequential(conv3x3(inputs, outputs, 1, conv), nn.MaxPool2d(2), norm(outputs), nn.ReLU(), block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(x)))
        return 0.125 * self.fc(global_max(x))


def small_resnet(num_classes: int = 10, norm: Norm = "layer", standardize: bool = False) -> SmallResNet:
    """Build a small residual network of 1,923,914 parameters at 10 classes, for images (N, 3, H, W) from 8x8 up.

    Arguments and errors are those of `SmallResNet`.
    """
    return SmallResNet(num_classes, norm, standardize)
